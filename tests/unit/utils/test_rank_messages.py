"""What processes say to each other, by a process that talks to itself; several real ones are in tests/distributed."""

import pickle
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from sat_vg.backbone_finetuning.utils.errors import OtherRankError
from sat_vg.backbone_finetuning.utils.ranks import DistributedProcess


class OnAGpu(Tensor):
    """Says that it is on a GPU, until it is brought to the CPU."""

    @property
    def device(self):
        return torch.device("cuda", 0)

    def cpu(self):
        return self.as_subclass(Tensor)


@dataclass(frozen=True)
class Probe:
    weight: Tensor
    more: dict


@pytest.fixture
def group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def probe():
    return Probe(torch.ones(2).as_subclass(OnAGpu), {"bias": [torch.zeros(3).as_subclass(OnAGpu), torch.zeros(1)]})


def test_tensors_cross_on_the_cpu_wherever_they_stand_in_what_is_said(group):
    assert type(pickle.loads(pickle.dumps(probe())).weight) is OnAGpu, "what torch does by itself"
    (heard,) = DistributedProcess(group, 0, 1).all_gather(probe())
    tensors = [heard.weight, *heard.more["bias"]]
    assert [type(tensor) for tensor in tensors] == [Tensor] * 3
    assert [tensor.device.type for tensor in tensors] == ["cpu"] * 3
    assert [tensor.tolist() for tensor in tensors] == [[1, 1], [0, 0, 0], [0]]


def test_what_rank_0_made_reaches_the_others_on_the_cpu(group, monkeypatch):
    said = []
    broadcast = dist.broadcast_object_list
    monkeypatch.setattr(
        dist, "broadcast_object_list", lambda sent, **more: (said.extend(sent), broadcast(sent, **more))
    )
    ranks, made = DistributedProcess(group, 0, 1), probe()
    assert ranks.broadcast_from_rank0(lambda: made) is made
    assert type(pickle.loads(said[0]).weight) is Tensor


def test_what_cannot_be_said_is_an_error_of_rank_0_for_which_nobody_waits(group, monkeypatch):
    said = []
    broadcast = dist.broadcast_object_list
    monkeypatch.setattr(
        dist, "broadcast_object_list", lambda sent, **more: (said.extend(sent), broadcast(sent, **more))
    )
    with pytest.raises((pickle.PicklingError, AttributeError)):
        DistributedProcess(group, 0, 1).broadcast_from_rank0(lambda: lambda: None)
    assert said == [None]
    with pytest.raises(ZeroDivisionError):
        DistributedProcess(group, 0, 1).broadcast_from_rank0(lambda: 1 // 0)
    assert said == [None, None]


def test_the_others_are_told_that_rank_0_could_not_go_on(group, monkeypatch):
    monkeypatch.setattr(dist, "broadcast_object_list", lambda sent, **more: None)
    with pytest.raises(OtherRankError, match="rank 0 could not go on"):
        DistributedProcess(group, 1, 2).broadcast_from_rank0(lambda: 1)
