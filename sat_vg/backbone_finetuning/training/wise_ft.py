"""WiSE-FT: weights between those that the last phase began with and those it ended with (Wortsman et al., 2022)."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from sat_vg.backbone_finetuning.configs.choices import Metric
from sat_vg.backbone_finetuning.evaluation.metrics import Validation
from sat_vg.backbone_finetuning.training.ema import WeightAverage
from sat_vg.backbone_finetuning.training.fsdp_tensors import local_shard, shard_like
from sat_vg.backbone_finetuning.training.phases import Phase
from sat_vg.backbone_finetuning.utils.stop_signals import StopRequested

SHARES = tuple(tenths / 10 for tenths in range(11))


@dataclass(frozen=True)
class Mixed:
    """Which weights between start and end were chosen.

    Attributes:
        share: of the trained weights.
        metric: by which they were chosen.
        values: of the metric, at each of ``SHARES``.
    """

    share: float
    metric: Metric
    values: tuple[float, ...]

    @property
    def description(self) -> str:
        """The choice, beside start and end, in one line."""
        found = dict(zip(SHARES, self.values, strict=True))
        chosen, start, end = (
            f"{found[share]:.4f}" if self.metric == "val_loss" else f"{100 * found[share]:.2f} %"
            for share in (self.share, 0.0, 1.0)
        )
        return (
            f"{self.share:g} of the trained weights and {1 - self.share:g} of those before them: {self.metric} "
            f"{chosen} (before {start}, trained {end})"
        )


class StartWeights(Protocol):
    """The weights that the newest phase of gradient steps began with."""

    @property
    def own(self) -> Mapping[str, Tensor]:
        """The network's own tensors, of those that are remembered."""

    def enter(self, phase: Phase, at_its_start: bool) -> None:
        """Remember the weights if a phase of gradient steps begins now."""

    def mix(self, average: WeightAverage, validate: Callable[[], Validation]) -> Mixed:
        """Put the best of the weights between start and end into the network."""

    def state_dict(self) -> dict[str, Tensor]:
        """The remembered weights by the network's names."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore remembered weights of this network."""


class NullStartWeights(StartWeights):
    """Remembers no weights."""

    @property
    def own(self) -> Mapping[str, Tensor]:
        """Nothing is remembered."""
        return {}

    def enter(self, phase: Phase, at_its_start: bool) -> None:
        """Do nothing."""

    def mix(self, average: WeightAverage, validate: Callable[[], Validation]) -> Mixed:
        """Mixing is a phase of its own, which only a run that remembers weights has."""
        raise AssertionError("no weights were remembered")

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing to keep."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Do nothing."""


class PhaseStartWeights(StartWeights):
    """The weights that the newest phase of gradient steps began with, batch norm's statistics among them.

    Args:
        network: on its device.
        metric: of the validation, by which weights are chosen.
    """

    def __init__(self, network: nn.Module, metric: Metric) -> None:
        named = (*network.named_parameters(), *network.named_buffers())
        self._own = {name: tensor for name, tensor in named if tensor.is_floating_point()}
        self._metric = metric
        self._start: dict[str, Tensor] = {}

    @property
    def own(self) -> Mapping[str, Tensor]:
        """Of what is remembered: the network's own tensors."""
        return self._own

    def enter(self, phase: Phase, at_its_start: bool) -> None:
        """Remember the weights if a phase of gradient steps begins now."""
        if phase.method == "gradient" and at_its_start:
            self._start = self._copy()

    def mix(self, average: WeightAverage, validate: Callable[[], Validation]) -> Mixed:
        """Put the best of the weights between start and end into the network, and into the average of its weights.

        Args:
            average: of the weights; where there is one, it is what the phase ended with.
            validate: validates the network as it is.

        Returns:
            What was chosen.

        Raises:
            StopRequested: as ``validate`` does; the weights are then as before.
        """
        own = self._copy()
        with average.applied():
            end = self._copy()
        validations: list[Validation] = []
        try:
            for share in SHARES:
                self._put(self._between(end, share))
                validations.append(validate())
        except StopRequested:
            self._put(own)
            raise
        best = max(range(len(SHARES)), key=lambda place: self._rank(validations[place]))
        self._put(self._between(end, SHARES[best]))
        average.restart()
        return Mixed(SHARES[best], self._metric, tuple(found.value_of(self._metric) for found in validations))

    def _rank(self, found: Validation) -> tuple[float, float]:
        """The higher the better; of equally good ones the lower loss decides."""
        if not math.isfinite(found.loss):
            return -math.inf, -math.inf
        value = found.value_of(self._metric)
        return (-value if self._metric == "val_loss" else value), -found.loss

    def _between(self, end: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
        return {
            name: torch.lerp(local_shard(start), local_shard(end[name]), share) for name, start in self._start.items()
        }

    def _copy(self) -> dict[str, Tensor]:
        return {name: own.detach().clone() for name, own in self._own.items()}

    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, own in self._own.items():
            local_shard(own).copy_(local_shard(values[name]))

    def state_dict(self) -> dict[str, Tensor]:
        """The remembered weights by the network's names; empty before the first phase of gradient steps."""
        return dict(self._start)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put remembered weights of this network back."""
        self._start = self._copy() if state else {}
        for name, tensor in self._start.items():
            tensor.copy_(shard_like(state[name], tensor))
