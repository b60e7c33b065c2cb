"""The orders that even classes out: how often each class and image comes."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sat_vg.backbone_finetuning.data.loading.sampling import BatchPlan, class_balanced, shuffled, weighted_draw
from sat_vg.backbone_finetuning.data.sources.splits import Split

SIZES = (60, 12, 3)


def split_of(labels, num_classes, label_sets=None):
    names = tuple(f"class {number}" for number in range(num_classes))
    return Split("train", tuple(f"{place}.png" for place in range(len(labels))), tuple(labels), names, label_sets)


def uneven():
    return split_of([label for label, size in enumerate(SIZES) for _ in range(size)], len(SIZES))


def drawn(order, count, seed=0):
    return order(count, torch.Generator().manual_seed(seed)).tolist()


def far_from(count, wanted, total):
    """Distance of a binomial count from what is wanted, in standard deviations."""
    share = wanted / total
    return abs(count - wanted) / (total * share * (1 - share)) ** 0.5


def test_weighted_draws_classes_equally_often_and_images_of_a_class_too():
    split, total = uneven(), 30_000
    places = drawn(weighted_draw(split), total)
    of_class = Counter(split.labels[place] for place in places)
    assert all(far_from(of_class[label], total / 3, total) < 4 for label in range(3))
    of_image = Counter(places)
    assert len(of_image) == sum(SIZES)
    for place, count in of_image.items():
        assert far_from(count, total / 3 / SIZES[split.labels[place]], total) < 5
    assert far_from(Counter(split.labels[p] for p in drawn(shuffled, 75))[2], 25, 75) > 4  # the bound can fail


def test_weighted_goes_by_the_rarest_class_of_an_image_and_counts_none_as_one():
    # 30 images of class 0; 10 of both; 20 of neither: 40 have class 0, 10 class 1, 20 none.
    split = split_of([0] * 30 + [1] * 10 + [2] * 20, 2, ((0,), (0, 1), ()))
    total = 20_000
    count = Counter(split.labels[place] for place in drawn(weighted_draw(split), total))
    shares = [30 / 40, 10 / 10, 20 / 20]
    for label, share in enumerate(shares):
        assert far_from(count[label], total * share / sum(shares), total) < 4


def test_weighted_never_leaves_the_images(monkeypatch):
    order = weighted_draw(uneven())
    # Beyond the sum of all shares, as rounding could bring about.
    monkeypatch.setattr(torch, "rand", lambda count, **_: torch.full((count,), 1.1, dtype=torch.float64))
    assert set(drawn(order, 2000)) == {sum(SIZES) - 1}


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(1, 200), st.integers(0, 10))
def test_class_balanced_takes_every_class_once_a_round_and_every_image_before_any_again(labels, count, seed):
    split = split_of(labels, 6)
    places = drawn(class_balanced(split), count, seed)
    assert len(places) == count
    present = set(labels)
    for start in range(0, count, len(present)):
        part = [labels[place] for place in places[start : start + len(present)]]
        assert len(set(part)) == len(part)  # the last round may be cut short
    for label in present:
        own = [place for place in places if labels[place] == label]
        size = labels.count(label)
        for start in range(0, len(own), size):
            turn = own[start : start + size]
            assert len(set(turn)) == len(turn)


def test_batches_of_whole_rounds_are_balanced_exactly():
    split = uneven()
    plan = BatchPlan(len(split), 15, seed=2, order=class_balanced(split))
    for epoch in range(3):
        for batch in plan.batches(epoch):
            assert Counter(split.labels[place] for place in batch) == {0: 5, 1: 5, 2: 5}
    rounds = torch.tensor(drawn(class_balanced(split), 75)).view(25, 3)
    firsts = Counter(split.labels[place] for place in rounds[:, 0].tolist())
    assert len(firsts) == 3  # within a round the order is random


@pytest.mark.parametrize("kind", [weighted_draw, class_balanced])
def test_batches_are_a_function_of_seed_and_epoch(kind):
    def plan(seed=7):
        return BatchPlan(75, 8, seed, kind(uneven()))

    first = plan()
    first.batches(4)  # another one was asked for in between
    torch.rand(3)
    assert first.batches(1) == plan().batches(1)
    assert first.batches(1) != first.batches(2)
    assert first.batches(1) != plan(seed=8).batches(1)
    assert [len(batch) for batch in first.batches(1)] == [len(batch) for batch in BatchPlan(75, 8, 7).batches(1)]
