"""The training loop, from top to bottom: phases, epochs, steps, validation, saving."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from tqdm import tqdm

from sat_vg.backbone_finetuning.data.loaders import Batch
from sat_vg.backbone_finetuning.data.mixing import Mixing
from sat_vg.backbone_finetuning.data.sampling import EpochBatches, num_parts
from sat_vg.backbone_finetuning.engine.checkpoint import BEST_MODEL, LAST, RunIdentity, RunState, RunTensors, save_run
from sat_vg.backbone_finetuning.engine.ema import NoAverage
from sat_vg.backbone_finetuning.engine.interrupts import InterruptRequest
from sat_vg.backbone_finetuning.engine.linear_probe import pooled_features, solve_linear_probe
from sat_vg.backbone_finetuning.engine.metrics import Validation, ValidationSums
from sat_vg.backbone_finetuning.engine.optim import Schedule, set_learning_rate, soft_cross_entropy
from sat_vg.backbone_finetuning.engine.phases import Phase
from sat_vg.backbone_finetuning.engine.precision import Precision
from sat_vg.backbone_finetuning.engine.saving import SaveSchedule
from sat_vg.backbone_finetuning.engine.step_results import REMEDY, LossSpike, PendingSteps, StepResult
from sat_vg.backbone_finetuning.engine.tracking import Tracker
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.reports.figures import draw_confusion_matrix
from sat_vg.backbone_finetuning.utils.errors import InterruptedRun, NonFiniteLossError
from sat_vg.backbone_finetuning.utils.seeding import Purpose, derive_seed, seed_default_generator, torch_generator
from sat_vg.backbone_finetuning.utils.terminal import say


@dataclass(frozen=True)
class Training:
    """What the loop trains with. Made once, changed by nobody but the optimizer.

    Attributes:
        model: on its device.
        optimizer: over all of its parameters.
        scaler: of the loss; hands through but in float16.
        precision: device and number formats.
        schedule: of the learning rate.
        mixing: Mixup and CutMix.
        batches: what the training loader yields next.
        train_loader: seeded training batches.
        val_loader: every validation image once.
        seed: the run's.
        loss: ``(logits, targets) ->`` sum over the batch, fp32.
        gradient_clip: largest norm; infinite where clipping is off.
        micro_batch_size: images that go through the model at once.
        average: of the weights, which is validated and saved in their place.
        plain_train_loader: every training image once, without augmentation; for exact probes.
    """

    model: FineTuneModel
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    precision: Precision
    schedule: Schedule
    mixing: Mixing
    batches: EpochBatches
    train_loader: DataLoader[Batch]
    val_loader: DataLoader[Batch]
    seed: int
    loss: Callable[[Tensor, Tensor], Tensor]
    gradient_clip: float
    micro_batch_size: int
    plain_train_loader: DataLoader[Batch]
    average: NoAverage = field(default_factory=NoAverage)

    @property
    def tensors(self) -> RunTensors:
        """What a checkpoint captures."""
        return RunTensors(self.model.network, self.optimizer, self.scaler, self.average)


@dataclass(frozen=True)
class Stopping:
    """What "best" means and when to stop before the last epoch.

    Attributes:
        metric: of the validation.
        patience: epochs without improvement; 0: never stop early.
        min_delta: what counts as an improvement.
    """

    metric: Literal["val_accuracy", "val_loss"]
    patience: int
    min_delta: float


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
        tracker: TensorBoard and metrics.jsonl.
        path_of: file of a training image by its index, for error messages.
    """

    folder: Path
    identity: RunIdentity
    save_frequency: int
    keep: int
    saves: SaveSchedule
    log_every: int
    tracker: Tracker
    path_of: Callable[[int], str]

    def save(self, state: RunState, training: Training) -> None:
        """Write last.pt, after all that was logged.

        Raises:
            NonFiniteLossError: the weights are no longer finite, so they were not saved.
            WriteError: the disk is full or the folder cannot be written to.
        """
        finite = torch.stack([p.detach().isfinite().all() for p in training.model.parameters()]).all()
        if not finite:
            raise NonFiniteLossError(
                f"the weights are no longer finite after step {state.step} (epoch {state.epoch + 1}), so they were "
                f"not saved. The checkpoints from before are untouched. {REMEDY}"
            )
        self.tracker.sync()
        save_run(self.folder, state, training.tensors, self.identity, self.keep)
        self.saves.note_save()

    def interrupted(self, state: RunState, training: Training, interrupt: InterruptRequest) -> InterruptedRun:
        """Save the state; the exception to raise says where."""
        self.save(state, training)
        return InterruptedRun(
            f"stopped by {interrupt.name} in epoch {state.epoch + 1} after step {state.step}, saved in "
            f"{self.folder / LAST}; the same command goes on from there",
            interrupt.number,
        )


def fit(training: Training, phases: Sequence[Phase], stopping: Stopping, outputs: Outputs, state: RunState) -> None:
    """Train all phases from wherever ``state`` stands, which is moved along.

    Raises:
        NonFiniteLossError: loss, gradient or weights became NaN or infinite; the last good checkpoint is untouched.
        WriteError: a file of the run cannot be written; those from before are untouched.
        InterruptedRun: Ctrl-C, SIGTERM or SIGUSR1; the state was saved.
    """
    num_epochs = sum(phase.epochs for phase in phases)
    with InterruptRequest() as interrupt:
        while state.phase < len(phases):
            phase = phases[state.phase]
            training.model.set_trainable(phase.trainable_stages)
            while state.epoch_in_phase < phase.epochs:
                _EPOCHS[phase.method](training, phase, outputs, state, interrupt)
                with training.average.applied():
                    validation = evaluate(training.model, training.val_loader, training.precision, interrupt)
                if validation is None:
                    raise outputs.interrupted(state, training, interrupt)
                _require_finite(validation, state)
                is_best = _note_epoch(training, phase, stopping, outputs, state, validation, num_epochs)
                if is_best:
                    with training.average.applied():
                        save_best(training.model, outputs, validation, state)
                state.end_epoch()
                if stopping.patience and state.epochs_without_improvement >= stopping.patience:
                    say(f"stopped early: no better {stopping.metric} for {stopping.patience} epochs")
                    break
                if state.epoch % outputs.save_frequency == 0 and state.epoch < num_epochs:
                    outputs.save(state, training)
            state.end_phase()
        state.finished = True
        outputs.save(state, training)


def _train_epoch(
    training: Training, phase: Phase, outputs: Outputs, state: RunState, interrupt: InterruptRequest
) -> None:
    """Train the rest of the running epoch."""
    plan = training.batches.plan
    training.batches.start_at(state.epoch, state.step_in_epoch)
    training.model.train()
    pending = PendingSteps(outputs.path_of, training.scaler.is_enabled())
    bar = tqdm(
        total=plan.num_samples,
        initial=state.train_images,
        desc=f"epoch {state.epoch + 1}",
        unit="img",
        leave=False,
        disable=None,
    )
    clock = time.perf_counter()
    with bar:
        for batch in training.train_loader:
            # The middle of the step, so that the first one of a warm-up is not lost to a rate of zero.
            position = state.epoch_in_phase + (state.step_in_epoch + 0.5) / plan.num_batches
            rate = phase.lr_scale * training.schedule.at(position, phase.epochs, state.plateau_factor)
            result = train_step(training, batch.to(training.precision.device), rate, state.step)
            pending.add(state.step, rate, result, batch.indices)
            state.step += 1
            state.step_in_epoch += 1
            state.train_images += len(batch.indices)
            bar.update(len(batch.indices))
            must_log, must_stop = state.step % outputs.log_every == 0, interrupt.requested
            must_save = must_stop or outputs.saves.is_due(state.step)
            if must_log or must_save or state.step_in_epoch == plan.num_batches:
                _note_spikes(outputs.tracker, phase, state, pending.settle(state))
                now = time.perf_counter()
                state.train_seconds += now - clock
                clock = now
                if must_log:
                    _note_step(outputs.tracker, phase, state, rate, pending.gradient_norm)
                bar.set_postfix(loss=f"{state.train_loss_sum / state.train_images:.3f}", lr=f"{rate:.1e}")
            if must_stop:
                raise outputs.interrupted(state, training, interrupt)
            if must_save:
                outputs.save(state, training)


def _solve_head(
    training: Training, phase: Phase, outputs: Outputs, state: RunState, interrupt: InterruptRequest
) -> None:
    """Put the exact linear probe on the frozen features in the classifier's place."""
    clock = time.perf_counter()
    found = pooled_features(training.model, training.plain_train_loader, training.precision, interrupt)
    if found is None:
        raise outputs.interrupted(state, training, interrupt)
    generator = torch_generator(derive_seed(training.seed, Purpose.HELD_OUT, state.step))
    features, labels = found
    probe = solve_linear_probe(
        features, labels, training.model.num_classes, generator, training.model.classifier_has_bias
    )
    training.model.set_classifier(probe.weight, probe.bias)
    training.average.restart()
    logits = features @ probe.weight.T + probe.bias
    state.train_loss_sum = float(functional.cross_entropy(logits, labels, reduction="sum"))
    state.train_images, state.train_seconds = len(features), time.perf_counter() - clock
    chosen_by = "" if probe.held_out_accuracy is None else f" ({100 * probe.held_out_accuracy:.2f} % held out)"
    say(f"exact linear probe on {len(features)} images: L2 {probe.strength:.0e}{chosen_by}")


_EPOCHS = {"gradient": _train_epoch, "exact_head": _solve_head}


def train_step(training: Training, batch: Batch, learning_rate: float, step: int) -> StepResult:
    """One optimizer step; dropout and mixing depend on (seed, step) alone.

    Args:
        training: what to train with.
        batch: on the device.
        learning_rate: of this step.
        step: its number, from 0.

    Returns:
        Loss and norm of the gradient, on the device.
    """
    precision = training.precision
    parts = num_parts(len(batch.indices), training.micro_batch_size)
    seed_default_generator(derive_seed(training.seed, Purpose.STEP, step), precision.device)
    images = precision.place_images(training.model.preprocessing.normalise(batch.images))
    images, targets = training.mixing(images, batch.targets, step)
    total = torch.zeros((), device=precision.device)
    for part, part_targets in zip(images.tensor_split(parts), targets.tensor_split(parts), strict=True):
        with precision.autocast():
            outputs = training.model.training_outputs(part)
        loss = sum(
            (weight * training.loss(logits, part_targets) for weight, logits in outputs), start=total.new_zeros(())
        )
        # Divided by the whole batch, so that parts of any size add up to its mean.
        training.scaler.scale(loss / len(images)).backward()
        total += loss.detach()
    training.scaler.unscale_(training.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(training.model.parameters(), training.gradient_clip)
    set_learning_rate(training.optimizer, learning_rate)
    training.scaler.step(training.optimizer)
    training.scaler.update()
    training.optimizer.zero_grad(set_to_none=True)
    training.average.update(step)
    return StepResult(total, norm)


def _require_finite(validation: Validation, state: RunState) -> None:
    if not math.isfinite(validation.loss):
        raise NonFiniteLossError(
            f"the validation loss is {validation.loss} after step {state.step} (epoch {state.epoch + 1}). The "
            f"checkpoints from before are untouched. {REMEDY}"
        )


@torch.inference_mode()
def evaluate(
    model: FineTuneModel, loader: DataLoader[Batch], precision: Precision, interrupt: InterruptRequest | None = None
) -> Validation | None:
    """Loss, accuracy and confusion matrix over all batches of ``loader``; None where a stop was asked for."""
    model.eval()
    sums = ValidationSums(model.num_classes, precision.device)
    for batch in tqdm(loader, desc="validation", unit="batch", leave=False, disable=None):
        batch = batch.to(precision.device)
        images = precision.place_images(model.preprocessing.normalise(batch.images))
        with precision.autocast():
            logits = model(images).float()
        sums.add(logits, batch.targets, soft_cross_entropy(logits, batch.targets))
        if interrupt is not None and interrupt.requested:
            return None
    return sums.result()


def _note_spikes(tracker: Tracker, phase: Phase, state: RunState, spikes: Sequence[LossSpike]) -> None:
    for spike in spikes:
        # The line's step counts those that are done, as in the other lines.
        place = {"event": "loss_spike", "phase": phase.name, "epoch": state.epoch + 1, "step": spike.step + 1}
        tracker.numbers({**place, "loss": spike.loss, "median_loss": spike.median}, spike.step + 1, "event")
        say(
            f"loss spike: {spike.loss:.4g} at step {spike.step + 1} (epoch {state.epoch + 1}), "
            f"{spike.loss / max(spike.median, 1e-12):.0f} times the median of the steps before"
        )


def _note_step(tracker: Tracker, phase: Phase, state: RunState, rate: float, gradient_norm: float | None) -> None:
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


def _note_epoch(
    training: Training,
    phase: Phase,
    stopping: Stopping,
    outputs: Outputs,
    state: RunState,
    validation: Validation,
    num_epochs: int,
) -> bool:
    """Record the epoch that has just ended; tells whether it is the best so far."""
    value = validation.accuracy if stopping.metric == "val_accuracy" else validation.loss
    is_best = state.note_validation(value, stopping.metric == "val_accuracy", stopping.min_delta)
    state.reduce_on_plateau(training.schedule.step_size, training.schedule.gamma)
    numbers: dict[str, Any] = {
        "phase": phase.name,
        "epoch": state.epoch + 1,
        "step": state.step,
        "learning_rate": training.optimizer.param_groups[-1]["lr"],
        "train_loss": state.train_loss_sum / max(state.train_images, 1),
        "val_loss": validation.loss,
        "val_accuracy": validation.accuracy,
        "seconds": state.train_seconds,
        "images_per_second": state.train_images / max(state.train_seconds, 1e-9),
    }
    if training.scaler.is_enabled():
        numbers["skipped_steps"] = state.skipped_steps
    outputs.tracker.numbers(numbers, state.step, "epoch")
    say(
        f"epoch {state.epoch + 1:3d}/{num_epochs}  train_loss {numbers['train_loss']:.4f}  "
        f"val_loss {validation.loss:.4f}  val_accuracy {100 * validation.accuracy:6.2f} %  "
        f"lr {numbers['learning_rate']:.1e}  {numbers['images_per_second']:5.0f} images/s  "
        f"{state.train_seconds:6.1f} s{'  best' if is_best else ''}"
        + (f"  {state.skipped_steps} steps left out by loss scaling" if state.skipped_steps else "")
    )
    return is_best


def save_best(model: FineTuneModel, outputs: Outputs, validation: Validation, state: RunState) -> None:
    """Write best_model.pt and draw its confusion matrix."""
    metrics = {"val_accuracy": validation.accuracy, "val_loss": validation.loss, "epoch": state.epoch + 1}
    model.save_checkpoint(outputs.folder / BEST_MODEL, config=outputs.identity.config, metrics=metrics)
    figure = draw_confusion_matrix(validation.confusion.numpy(), model.class_names)
    outputs.tracker.figure("confusion_matrix", figure, state.step)
