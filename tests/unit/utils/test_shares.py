"""How batches and images are shared out; processes that really share them are in tests/distributed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sat_vg.backbone_finetuning.data.loading.mixing import neighbours
from sat_vg.backbone_finetuning.data.loading.sampling import BatchPlan
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.ranks import Share, SingleProcess, joined


@given(size=st.integers(1, 300), count=st.integers(1, 70))
def test_shares_of_a_batch_are_its_neighbours_in_order_and_keep_pairs_together(size, count):
    shares = [Share(rank, count).of_batch(list(range(size))) for rank in range(count)]
    assert [index for share in shares for index in share] == list(range(size))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 3
    whole = neighbours(size, torch.device("cpu")).tolist()
    mixed = [
        share[place] for share in shares if share for place in neighbours(len(share), torch.device("cpu")).tolist()
    ]
    assert mixed == whole, "an image is mixed with the same one, whoever computes it"


@given(size=st.integers(0, 300), count=st.integers(1, 70))
def test_shares_of_many_are_each_once(size, count):
    shares = [Share(rank, count).of_many(range(size)) for rank in range(count)]
    assert sorted(index for share in shares for index in share) == list(range(size))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


@given(images=st.integers(2, 400), batch=st.integers(2, 64), count=st.integers(1, 8), epoch=st.integers(0, 3))
def test_the_batches_of_an_epoch_do_not_depend_on_who_computes_them(images, batch, count, epoch):
    plans = [BatchPlan(images, batch, seed=3, share=Share(rank, count)) for rank in range(count)]
    alone = BatchPlan(images, batch, seed=3).batches(epoch)
    shared = zip(*(plan.own_batches(epoch) for plan in plans), strict=True)
    together = [[index for share in shares for index in share] for shares in shared]
    assert together == alone
    fewest = min(len(share) for plan in plans for share in plan.own_batches(epoch))
    assert plans[0].fewest_images == fewest


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"WORLD_SIZE": "2", "RANK": "0"}, "LOCAL_RANK = ''"),
        ({"WORLD_SIZE": "many", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}, "WORLD_SIZE = 'many'"),
    ],
)
def test_variables_that_torchrun_has_not_set_are_named(monkeypatch, variables, named):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=named), joined():
        raise AssertionError("there is nobody to train with")


def test_one_process_has_nobody_to_ask(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined() as ranks:
        assert type(ranks) is SingleProcess
        assert ranks.all_reduce_max(3, False) == [3, False]
        assert ranks.all_gather("x") == ["x"]
        assert ranks.broadcast_from_rank0(lambda: 4) == ranks.in_turn(lambda: 4) == 4
        assert ranks.share == Share(0, 1)
        assert ranks.on_machine is ranks
