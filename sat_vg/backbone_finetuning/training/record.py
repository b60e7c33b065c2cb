"""Outputs of the loop: checkpoints, the best model, and the log of steps and epochs."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sat_vg.backbone_finetuning.configs.choices import Metric
from sat_vg.backbone_finetuning.evaluation.metrics import Validation
from sat_vg.backbone_finetuning.evaluation.tasks import TASKS
from sat_vg.backbone_finetuning.models.artifact import BEST_MODEL, artifact_of, write_artifact
from sat_vg.backbone_finetuning.training.checkpoint import LAST, RunState, save_run
from sat_vg.backbone_finetuning.training.epoch_curves import epoch_curves, run_rate
from sat_vg.backbone_finetuning.training.fsdp_tensors import gathered, local_shard
from sat_vg.backbone_finetuning.training.image_outputs import BestOutputs
from sat_vg.backbone_finetuning.training.phases import Phase
from sat_vg.backbone_finetuning.training.run_identity import RunIdentity
from sat_vg.backbone_finetuning.training.step_results import REMEDY, LossSpike
from sat_vg.backbone_finetuning.training.tracking import Tracker
from sat_vg.backbone_finetuning.training.training import Stopping, Training
from sat_vg.backbone_finetuning.utils.errors import InterruptedRun, NonFiniteLossError
from sat_vg.backbone_finetuning.utils.stop_signals import InterruptRequest
from sat_vg.backbone_finetuning.utils.terminal import say


class SaveSchedule:
    """Says whether a save is due; epochs' ends have their own rule.

    Args:
        every_steps: optimizer steps of the run between two saves; 0: not by steps.
        every_seconds: since the last save of any kind; 0: not by time.
    """

    def __init__(self, every_steps: int, every_seconds: float) -> None:
        self._every_steps, self._every_seconds = every_steps, every_seconds
        self._last = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Whether the state after ``step`` steps is to be saved now."""
        by_steps = self._every_steps > 0 and step % self._every_steps == 0
        return by_steps or 0 < self._every_seconds <= time.monotonic() - self._last

    def note_save(self) -> None:
        """Count the time from now."""
        self._last = time.monotonic()


@dataclass(frozen=True)
class Outputs:
    """Where the loop writes.

    Attributes:
        folder: of best_model.pt and last.pt.
        identity: what a resume is checked against.
        save_frequency: epochs between two writes of last.pt.
        keep: number of resumable files.
        saves: when last.pt is written within an epoch.
        log_every: steps between two log entries.
        tracker: TensorBoard and metrics.jsonl, from rank 0.
        path_of: file of a training image by its index, for error messages.
        best_outputs: the best model's outputs on validation images.
    """

    folder: Path
    identity: RunIdentity
    save_frequency: int
    keep: int
    saves: SaveSchedule
    log_every: int
    tracker: Tracker
    path_of: Callable[[int], str]
    best_outputs: BestOutputs

    def save(self, state: RunState, training: Training) -> None:
        """Write last.pt, after all that was logged.

        Raises:
            NonFiniteLossError: the weights are no longer finite, so they were not saved.
            WriteError: the disk is full or the folder cannot be written to.
        """
        finite = torch.stack([local_shard(p).isfinite().all() for p in training.model.parameters()]).all()
        if any(
            training.ranks.all_reduce_max(not finite)
        ):  # if only in the part of the weights that another process holds
            raise NonFiniteLossError(
                f"the weights are no longer finite after step {state.step} (epoch {state.epoch + 1}), so they were "
                f"not saved. The checkpoints from before are untouched. {REMEDY}"
            )
        with training.profile.span("checkpoint"):
            self.tracker.sync()
            save_run(self.folder, state, training.tensors, self.identity, self.keep, training.ranks)
        self.saves.note_save()

    def interrupted(self, state: RunState, training: Training, interrupt: InterruptRequest) -> InterruptedRun:
        """Save the state; the exception to raise says where."""
        (number,) = training.ranks.all_reduce_max(interrupt.number if interrupt.requested else 0)
        interrupt.note(number)
        self.save(state, training)
        return InterruptedRun(
            f"stopped by {interrupt.name} in epoch {state.epoch + 1} after step {state.step}, saved in "
            f"{self.folder / LAST}; the same command goes on from there",
            interrupt.number,
        )


def note_spikes(tracker: Tracker, phase: Phase, state: RunState, spikes: Sequence[LossSpike]) -> None:
    """Report losses far above those before them."""
    for spike in spikes:
        # The line's step counts those that are done, as in the other lines.
        place = {"event": "loss_spike", "phase": phase.name, "epoch": state.epoch + 1, "step": spike.step + 1}
        tracker.numbers({**place, "loss": spike.loss, "median_loss": spike.median}, spike.step + 1, "event")
        say(
            f"loss spike: {spike.loss:.4g} at step {spike.step + 1} (epoch {state.epoch + 1}), "
            f"{spike.loss / max(spike.median, 1e-12):.0f} times the median of the steps before"
        )


def note_step(tracker: Tracker, phase: Phase, state: RunState, rate: float, gradient_norm: float | None) -> None:
    """Record the steps since the last time."""
    numbers = {
        "phase": phase.name,
        "epoch": state.epoch + 1,
        "step": state.step,
        "learning_rate": rate,
        "train_loss": state.window_loss_sum / state.window_images,
        "gradient_norm": gradient_norm,  # null: loss scaling left the step out
        "images_per_second": state.train_images / state.train_seconds,
    }
    tracker.numbers(numbers, state.step, "step")
    state.window_loss_sum, state.window_images = 0.0, 0


def note_epoch(
    training: Training,
    phase: Phase,
    stopping: Stopping,
    outputs: Outputs,
    state: RunState,
    validation: Validation,
    num_epochs: int,
) -> bool:
    """Log the epoch that has just ended; returns whether it is the best so far."""
    value = validation.value_of(stopping.metric)
    is_best = state.note_validation(
        value, validation.loss, stopping.higher_is_better, stopping.min_delta, phase.wins_ties
    )
    state.reduce_on_plateau(training.schedule.step_size, training.schedule.gamma)
    numbers: dict[str, Any] = {
        "phase": phase.name,
        "epoch": state.epoch + 1,
        "step": state.step,
        "learning_rate": run_rate(training.optimizer),
        "train_loss": state.train_loss_sum / max(state.train_images, 1),
        **validation.numbers(),
        "seconds": state.train_seconds,
        "images_per_second": state.train_images / max(state.train_seconds, 1e-9),
    }
    if training.scaler.is_enabled():
        numbers["skipped_steps"] = state.skipped_steps
    if state.wise_ft_share is not None:
        numbers["wise_ft_share"] = state.wise_ft_share
    outputs.tracker.curves(epoch_curves(training, validation), state.step)
    if state.epoch_in_phase == 0:  # with the epoch's other numbers, so that a resumed run finds it once
        outputs.tracker.text("phases", [f"from epoch {state.epoch + 1} on: {phase.description}"], state.step)
    outputs.tracker.numbers(numbers, state.step, "epoch")
    rate = f"lr {numbers['learning_rate']:.1e}  " if phase.method == "gradient" else ""
    say(
        f"epoch {state.epoch + 1:3d}/{num_epochs}  train_loss {numbers['train_loss']:.4f}  "
        f"val_loss {validation.loss:.4f}  {_shares_of(validation, stopping.metric)}  "
        f"{rate}{numbers['images_per_second']:5.0f} images/s  "
        f"{state.train_seconds:6.1f} s{'  best' if is_best else ''}"
        + (f"  {state.skipped_steps} steps left out by loss scaling" if state.skipped_steps else "")
    )
    return is_best


def _shares_of(validation: Validation, metric: Metric) -> str:
    """The most telling shares of a validation for the line of its epoch, with the one that says what is best."""
    numbers = validation.numbers()
    names = ["val_map", "micro_f1"] if "val_map" in numbers else ["val_accuracy"]
    best = "macro_f1" if metric == "val_macro_f1" else metric
    names += [best] if best not in ("val_loss", *names) else []
    return "  ".join(f"{name} {100 * numbers[name]:6.2f} %" for name in names)


def save_best(training: Training, outputs: Outputs, validation: Validation, state: RunState) -> None:
    """Write best_model.pt and draw its confusion matrix, or its scores by class."""
    model, task = training.model, TASKS[training.model.task]
    metrics = {**validation.numbers(), "epoch": state.epoch + 1}
    outputs.best_outputs.metrics = metrics
    artifact = artifact_of(model, outputs.identity.config, metrics)
    artifact = replace(artifact, state_dict=gathered(artifact.state_dict, training.ranks))

    def write() -> None:
        write_artifact(outputs.folder / BEST_MODEL, artifact)
        outputs.tracker.figure(task.figure, task.draw(validation, model.class_names), state.step)

    training.ranks.run_on_rank0(write)
