"""Iterative stratification: every class in its share on both sides, by seed alone."""

from collections import Counter

import numpy as np
import pytest

from sat_vg.backbone_finetuning.data.sources.listed_splits import split_label_sets


def drawn(count=3000, num_classes=12, seed=0):
    """Label sets of images in which classes of very different frequency come together, and some images have none."""
    generator = np.random.default_rng(seed)
    frequency = np.geomspace(0.5, 0.004, num_classes)
    has = generator.random((count, num_classes)) < frequency
    has[:, 1] |= has[:, 0] & (generator.random(count) < 0.8)  # nearly always together
    sets = sorted({tuple(np.flatnonzero(row).tolist()) for row in has})
    place = {classes: label for label, classes in enumerate(sets)}
    return [place[tuple(np.flatnonzero(row).tolist())] for row in has], sets


def counted(labels, sets, chosen=None):
    images = range(len(labels)) if chosen is None else chosen
    return Counter(name for image in images for name in sets[labels[image]] or (None,))


@pytest.mark.parametrize("fraction", [0.2, 0.5])
@pytest.mark.parametrize("seed", range(5))
def test_each_class_has_its_share_on_both_sides(fraction, seed):
    labels, sets = drawn(seed=seed)
    val = split_label_sets(labels, sets, fraction, seed)
    assert val == sorted(set(val))
    assert abs(len(val) - fraction * len(labels)) <= 0.01 * len(labels)
    whole, part = counted(labels, sets), counted(labels, sets, val)
    assert None in whole
    assert min(whole.values()) < 30
    # Within one image where the class alone decides; a class that always comes with others is bound to them.
    off = {name: abs(part[name] - fraction * count) for name, count in whole.items()}
    rarest_first = sorted(whole, key=lambda name: whole[name])
    assert all(off[name] <= 1 for name in rarest_first[:8]), off
    assert all(off[name] <= 0.02 * whole[name] + 1 for name in whole), off
    assert all(0 < part[name] < count for name, count in whole.items())


def test_it_is_far_better_than_chance():
    labels, sets = drawn(count=400)
    whole = counted(labels, sets)

    def distance(chosen):
        part = counted(labels, sets, chosen)
        return max(abs(part[name] - 0.2 * count) for name, count in whole.items())

    ours = distance(split_label_sets(labels, sets, 0.2, 0))
    by_chance = [distance(np.random.default_rng(s).permutation(400)[:80].tolist()) for s in range(20)]
    assert ours <= 1 < min(by_chance)


def test_the_seed_alone_decides():
    labels, sets = drawn(count=300)
    assert split_label_sets(labels, sets, 0.2, 3) == split_label_sets(labels, sets, 0.2, 3)
    assert split_label_sets(labels, sets, 0.2, 3) != split_label_sets(labels, sets, 0.2, 4)


def test_one_class_an_image_gives_a_plain_stratified_split():
    sets = [(0,), (1,), (2,)]
    labels = [0] * 50 + [1] * 10 + [2] * 5
    val = split_label_sets(labels, sets, 0.2, 0)
    assert Counter(labels[image] for image in val) == {0: 10, 1: 2, 2: 1}


def test_small_and_odd_data():
    assert len(split_label_sets([0, 0], [()], 0.2, 0)) == 1  # no classes at all
    for seed in range(20):
        # A class of one image is train's; of two, one goes to each side.
        labels, sets = [0] + [1] * 2 + [2] * 20, [(0,), (1,), (2,)]
        val = split_label_sets(labels, sets, 0.2, seed)
        part = counted(labels, sets, val)
        assert (part[0], part[1], part[2]) == (0, 1, 4)
    assert split_label_sets([0], [(0, 1)], 0.5, 0) == []
