"""Moving average of the weights, which is validated and saved instead of them."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn

from sat_vg.backbone_finetuning.training.fsdp_tensors import local_shard, shard_like
from sat_vg.backbone_finetuning.utils.errors import CheckpointError


class WeightAverage(Protocol):
    """An average of the weights over the steps."""

    def update(self, step: int) -> None:
        """Take in the weights after optimizer step ``step``, counted from 0."""

    def applied(self) -> AbstractContextManager[None]:
        """The network computes with the average for as long as the context lasts."""

    def restart(self) -> None:
        """Start over from the current weights."""

    def state_dict(self) -> dict[str, Tensor]:
        """The average by the network's names."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore an average; raises CheckpointError where it belongs to another network."""


class NullAverage(WeightAverage):
    """No average: the weights are used as they are."""

    def update(self, step: int) -> None:
        """Do nothing."""

    def applied(self) -> AbstractContextManager[None]:
        """The network as it is."""
        return nullcontext()

    def restart(self) -> None:
        """Do nothing."""

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing to keep."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Do nothing."""


class MovingAverage(WeightAverage):
    """Exponential moving average of a network's weights (Polyak & Juditsky, 1992; Tarvainen & Valpola, 2017).

    Floating-point buffers are averaged too: batch norm's statistics must fit the averaged weights. In the first steps
    the average forgets faster, by ``(1 + step) / (10 + step)``, so that it is not made of the random start.

    Args:
        network: whose weights are averaged; on its device.
        decay: share that stays in each step, below 1; with 0 the average is the weights themselves.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        named = (*network.named_parameters(), *network.named_buffers())
        self._own = {name: tensor for name, tensor in named if tensor.is_floating_point()}
        self._average = {name: tensor.detach().clone() for name, tensor in self._own.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimizer step ``step``, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        # Local shards are looked up in every step: loading a checkpoint replaces the tensors.
        average, own = ([local_shard(tensor) for tensor in of.values()] for of in (self._average, self._own))
        torch._foreach_lerp_(average, own, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The network computes with the average for as long as the context lasts."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        # By value: FSDP gathers weights from the memory that it has once allocated.
        for name, own in self._own.items():
            weights, average = local_shard(own), local_shard(self._average[name])
            kept = weights.clone()
            weights.copy_(average)
            average.copy_(kept)

    def restart(self) -> None:
        """Start over from the current weights."""
        for name, own in self._own.items():
            self._average[name].copy_(own.detach())

    def state_dict(self) -> dict[str, Tensor]:
        """The average by the network's names."""
        return dict(self._average)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore an average.

        Raises:
            CheckpointError: it belongs to another network, or to a run without an average.
        """
        missing = [name for name in self._average if name not in state]
        if missing or len(state) != len(self._average):
            raise CheckpointError(
                f"the checkpoint holds an average of {len(state)} tensors, the network has {len(self._average)}"
                + (f"; missing: {missing[0]}" if missing else "")
            )
        for name, tensor in self._average.items():
            tensor.copy_(shard_like(state[name], tensor))
