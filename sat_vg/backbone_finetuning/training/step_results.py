"""Losses and gradient norms of steps, copied from the device together so that no step waits for it."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sat_vg.backbone_finetuning.training.checkpoint import RunState
from sat_vg.backbone_finetuning.utils.errors import NonFiniteLossError
from sat_vg.backbone_finetuning.utils.ranks import Ranks

REMEDY = "Lower --learning_rate, raise --warmup_epochs, or try --mixed_precision false"
_SPIKE_FACTOR, _SPIKES_REPORTED = 10.0, 3  # an epoch
# Towards the end of a good training one image with a wrong label is ten times the median, and no sign of trouble.
_LEAST_SPIKE = 1.0
LONGEST_HISTORY, _SHORTEST_HISTORY = 100, 20  # steps
# Loss scaling starts at 2**16 and halves at every step that it leaves out: by then it has nothing left to halve.
MOST_SKIPPED_IN_A_ROW = 32


class StepResult(NamedTuple):
    """Results of a step, on the device.

    Attributes:
        loss: summed over this process's share of the batch, fp32.
        gradient_norm: before clipping.
    """

    loss: Tensor
    gradient_norm: Tensor


@dataclass(frozen=True)
class LossSpike:
    """A loss far above those before it.

    Attributes:
        step: its number, from 0.
        loss: mean over the batch.
        median: of the steps before.
    """

    step: int
    loss: float
    median: float


class _Pending(NamedTuple):
    step: int
    learning_rate: float
    result: StepResult
    indices: Sequence[int]


class PendingSteps:
    """Steps whose results are still on the device. Nothing is saved while there are any.

    Args:
        path_of: file of a training image by its index, for error messages.
        scales_loss: whether loss scaling may leave steps out whose gradient overflowed.
        ranks: the processes whose shares of a batch have losses of their own.

    Attributes:
        gradient_norm: of the last flushed step; None where loss scaling skipped it.
    """

    def __init__(self, path_of: Callable[[int], str], scales_loss: bool, ranks: Ranks) -> None:
        self.gradient_norm: float | None = None
        self._path_of, self._scales_loss, self._ranks = path_of, scales_loss, ranks
        self._pending: list[_Pending] = []

    def add(self, step: int, learning_rate: float, result: StepResult, indices: Sequence[int]) -> None:
        """Add a step's results, still on the device."""
        self._pending.append(_Pending(step, learning_rate, result, indices))

    def flush(self, state: RunState) -> list[LossSpike]:
        """Copy the results from the device, all at once, check them and add them up in ``state``.

        Returns:
            The losses that are worth a line, few an epoch.

        Raises:
            NonFiniteLossError: a loss or gradient is NaN or infinite.
        """
        if not self._pending:
            return []
        losses, norms = (torch.stack(parts) for parts in zip(*(entry.result for entry in self._pending), strict=True))
        self._ranks.all_reduce_sum(losses)
        numbers = torch.stack([losses, norms], dim=1).cpu().tolist()
        spikes = []
        for entry, (loss, norm) in zip(self._pending, numbers, strict=True):
            if not math.isfinite(loss):
                raise self._diverged("loss", loss, entry, state)
            self._note_gradient(norm, entry, state)
            state.train_loss_sum += loss
            state.window_loss_sum += loss
            state.window_images += len(entry.indices)
            spikes += _note_loss(loss / len(entry.indices), entry.step, state)
        self._pending.clear()
        return spikes

    def _note_gradient(self, norm: float, entry: _Pending, state: RunState) -> None:
        """Tell an overflow that loss scaling has dealt with from divergence."""
        is_finite = math.isfinite(norm)
        self.gradient_norm = norm if is_finite else None
        if is_finite:
            state.skipped_in_a_row = 0
            return
        state.skipped_steps += 1
        state.skipped_in_a_row += 1
        if not self._scales_loss or state.skipped_in_a_row > MOST_SKIPPED_IN_A_ROW:
            raise self._diverged("norm of the gradient", norm, entry, state)

    def _diverged(self, what: str, value: float, entry: _Pending, state: RunState) -> NonFiniteLossError:
        files = [self._path_of(int(index)) for index in entry.indices]
        return NonFiniteLossError(
            f"the {what} is {value} at step {entry.step} (epoch {state.epoch + 1}, learning rate "
            f"{entry.learning_rate:.3g}). The checkpoints from before are untouched. {REMEDY}. Images of the batch:"
            + "".join(f"\n  {file}" for file in files)
        )


def _note_loss(loss: float, step: int, state: RunState) -> list[LossSpike]:
    """Take a step's mean loss into the history; the spike that it is, if it is one and is to be reported."""
    history = state.recent_losses
    median = statistics.median(history) if len(history) >= _SHORTEST_HISTORY else math.inf
    state.recent_losses = [*history, loss][-LONGEST_HISTORY:]
    if loss <= max(_SPIKE_FACTOR * median, _LEAST_SPIKE) or state.spikes >= _SPIKES_REPORTED:
        return []
    state.spikes += 1
    return [LossSpike(step, loss, median)]
