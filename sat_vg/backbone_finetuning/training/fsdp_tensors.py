"""Functions of tensors that FSDP may have divided among the processes: weights, averages, optimizer states.

All of them return plain tensors unchanged, so that no caller asks whether there are shards.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from sat_vg.backbone_finetuning.utils.ranks import Ranks


def local_shard(tensor: Tensor) -> Tensor:
    """This process's shard, detached, sharing the tensor's memory; it may be empty."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def full_tensor(tensor: Tensor) -> Tensor:
    """The tensor gathered from all processes' shards; collective."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(value: Any, like: Tensor) -> Any:
    """This process's shard of a full tensor, divided as ``like`` is; values of another shape as they are."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    on_device = value.to(like.device)
    divided = distribute_tensor(on_device, like.device_mesh, like.placements, src_data_rank=None)
    return divided.clone()  # or a view of a part would keep the whole in memory


def square_sum(tensors: Sequence[Tensor]) -> Tensor:
    """The sum of all elements' squares, fp32; collective."""
    total = torch.stack([local_shard(tensor).float().square().sum() for tensor in tensors]).sum()
    meshes = [tensor.device_mesh for tensor in tensors if isinstance(tensor, DTensor)]
    if meshes:
        dist.all_reduce(total, group=meshes[0].get_group())
    return total


def gathered(state: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """A state with full tensors on rank 0's CPU, and None instead of them on other ranks; collective.

    Tensors are gathered one after another, so a device holds no more than one of them at once. A state without
    shards is what is given.
    """
    found = copy.copy(state)  # with what torch keeps beside weights
    for name, value in state.items():
        if isinstance(value, DTensor):
            full = full_tensor(value.detach())
            found[name] = full.cpu() if ranks.is_first else None
        elif isinstance(value, dict):
            found[name] = gathered(value, ranks)
    return found


def parts_of_weights(state: Mapping[str, Any], likes: Mapping[str, Tensor]) -> dict[str, Any]:
    """This process's shards of full tensors, divided as the tensors of the same names are."""
    return {name: shard_like(value, likes[name]) if name in likes else value for name, value in state.items()}


def parts_of_optimizer(state: Mapping[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """The same of an optimizer's state, which torch keys by the places of the parameters.

    Each tensor gets its parameter's memory format, which need not be that of the run that wrote it: fused kernels go
    through the memory of both in step and do not look.
    """
    parameters = dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))
    own = {
        place: {
            name: _beside(shard_like(value, parameters[place]), parameters[place]) for name, value in entries.items()
        }
        for place, entries in state["state"].items()
    }
    return {**state, "state": own}


def _beside(value: Any, parameter: Tensor) -> Any:
    is_of_its_shape = isinstance(value, Tensor) and value.shape == parameter.shape
    if not is_of_its_shape or value.stride() == parameter.stride():
        return value
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
