"""A moving average of the weights, which is validated and saved in their place."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sat_vg.backbone_finetuning.training.fsdp_tensors import held, part_of
from sat_vg.backbone_finetuning.utils.errors import CheckpointError


class NoAverage:
    """The weights are used as they are."""

    def update(self, step: int) -> None:
        """Nothing to take in."""

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The network as it is."""
        yield

    def restart(self) -> None:
        """Nothing to begin with."""

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing to keep."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to put back."""


class MovingAverage(NoAverage):
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
        # The tensors behind the parameters are looked up anew: checkpoints put others in their place.
        average, own = ([held(tensor) for tensor in of.values()] for of in (self._average, self._own))
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
        # By value: weights in shards are put together from the very memory that they had at first.
        for name, own in self._own.items():
            weights, average = held(own), held(self._average[name])
            kept = weights.clone()
            weights.copy_(average)
            average.copy_(kept)

    def restart(self) -> None:
        """Begin anew from the weights as they are."""
        for name, own in self._own.items():
            self._average[name].copy_(own.detach())

    def state_dict(self) -> dict[str, Tensor]:
        """The average by the network's names."""
        return dict(self._average)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put an average back.

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
            tensor.copy_(part_of(state[name], tensor))


class UnusedAverage(MovingAverage):
    """A moving average that is kept in checkpoints, while the weights themselves are validated and saved."""

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The network as it is."""
        yield
