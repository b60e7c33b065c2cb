"""What plain tensors and states become on their way into checkpoints and back; shards are in tests/distributed."""

import copy

import pytest
import torch
from torch import nn

from sat_vg.backbone_finetuning.data.loading.sampling import BatchPlan
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.training.checkpoint import (
    RunState,
    RunTensors,
    read_run,
    restore_run,
    save_run,
)
from sat_vg.backbone_finetuning.training.fsdp import fewest_at_once, share_sizes, units
from sat_vg.backbone_finetuning.training.fsdp_tensors import (
    full_tensor,
    gathered,
    local_shard,
    shard_like,
    square_sum,
)
from sat_vg.backbone_finetuning.training.run_identity import RunIdentity
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.ranks import SingleProcess


def take_step(network: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    images = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    network(images).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def tensors(memory_format: torch.memory_format) -> RunTensors:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).to(memory_format=memory_format)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, fused=True)
    return RunTensors(network, optimizer, torch.amp.GradScaler("cpu", enabled=False))


def test_a_run_goes_on_in_another_memory_format(tmp_path):
    """Fused AdamW takes weights and averages by their places in memory."""
    first, other = tensors(torch.contiguous_format), tensors(torch.channels_last)
    for number in range(3):
        take_step(first.network, first.optimizer, number)
    path = save_run(tmp_path, RunState(step=3), first, RunIdentity({}, "", {}), keep=1)
    restore_run(read_run(path), other)
    take_step(first.network, first.optimizer, 3)
    take_step(other.network, other.optimizer, 3)
    assert other.network[0].weight.is_contiguous(memory_format=torch.channels_last)
    for expected, found in zip(first.network.parameters(), other.network.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_plain_tensors_are_handed_through():
    tensor = nn.Parameter(torch.randn(3, 2))
    assert full_tensor(tensor) is tensor and shard_like(tensor, torch.zeros(3, 2)) is tensor
    assert local_shard(tensor).data_ptr() == tensor.data_ptr() and not local_shard(tensor).requires_grad
    torch.testing.assert_close(square_sum([tensor, tensor]), 2 * tensor.detach().square().sum())
    state = nn.BatchNorm2d(2).state_dict()
    found = gathered(state, SingleProcess())
    assert found._metadata == state._metadata and list(found) == list(state)
    assert all(found[name] is state[name] for name in state)
    assert gathered(copy.deepcopy({"a": {"b": 1}, "c": None}), SingleProcess()) == {"a": {"b": 1}, "c": None}


def test_all_processes_divide_their_shares_alike_and_none_has_an_empty_part():
    plan = BatchPlan(num_samples=27, batch_size=6, seed=0)  # batches of 5 and 6
    assert share_sizes(6, 2) == [2, 4] and share_sizes(5, 2) == [2, 3]
    assert fewest_at_once(plan, 6, 2) == 2
    assert fewest_at_once(plan, 2, 2) == 1
    with pytest.raises(ConfigError, match=r"raise it to 2 or more, or take a batch_size that is a multiple of 4"):
        fewest_at_once(plan, 1, 2)
    for count in (2, 3, 4, 8):
        for size in range(2 * count, 70):
            assert fewest_at_once(BatchPlan(size, size, 0), 2, count) > 0


@pytest.mark.parametrize(("backbone", "expected"), [("resnet18", 8), ("vit_b_16", 12), ("maxvit_t", 2)])
def test_units_are_what_stages_call(backbone, expected):
    with torch.device("meta"):
        model = FineTuneModel(backbone, 3, pretrained=False, image_size=224)
    found = units(model)
    assert len(found) == expected
    inside = [module for unit in found for module in unit.modules()]
    assert len(inside) == len(set(inside)), "no weight is in two"
