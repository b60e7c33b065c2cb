"""The training loop, from top to bottom: phases, epochs, steps, validation, saving."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from tqdm import tqdm

from sat_vg.backbone_finetuning.data.loaders import Batch
from sat_vg.backbone_finetuning.data.mixing import Mixing
from sat_vg.backbone_finetuning.data.sampling import EpochBatches, num_parts
from sat_vg.backbone_finetuning.engine.checkpoint import BEST_MODEL, LAST, RunIdentity, RunState, RunTensors, save_run
from sat_vg.backbone_finetuning.engine.interrupts import InterruptRequest
from sat_vg.backbone_finetuning.engine.metrics import Validation, ValidationSums
from sat_vg.backbone_finetuning.engine.optim import Schedule, set_learning_rate, soft_cross_entropy
from sat_vg.backbone_finetuning.engine.phases import Phase
from sat_vg.backbone_finetuning.engine.precision import Precision
from sat_vg.backbone_finetuning.engine.tracking import Tracker
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.reports.figures import draw_confusion_matrix
from sat_vg.backbone_finetuning.utils.errors import InterruptedRun, NonFiniteLossError
from sat_vg.backbone_finetuning.utils.seeding import Purpose, derive_seed, seed_default_generator
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

    @property
    def tensors(self) -> RunTensors:
        """What a checkpoint captures."""
        return RunTensors(self.model.network, self.optimizer, self.scaler)


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
        log_every: steps between two log entries.
        tracker: TensorBoard and metrics.jsonl.
        path_of: file of a training image by its index, for error messages.
    """

    folder: Path
    identity: RunIdentity
    save_frequency: int
    keep: int
    log_every: int
    tracker: Tracker
    path_of: Callable[[int], str]

    def save(self, state: RunState, training: Training) -> None:
        """Write last.pt."""
        save_run(self.folder, state, training.tensors, self.identity, self.keep)

    def interrupted(self, state: RunState, training: Training) -> InterruptedRun:
        """Save the state, if it is sound; the exception to raise says where."""
        finite = torch.stack([p.detach().isfinite().all() for p in training.model.parameters()]).all()
        if not finite:
            return InterruptedRun("interrupted; the weights are no longer finite, so they were not saved")
        self.save(state, training)
        return InterruptedRun(
            f"interrupted in epoch {state.epoch + 1} after step {state.step}, saved in {self.folder / LAST}; "
            "the same command goes on from there"
        )


def fit(training: Training, phases: Sequence[Phase], stopping: Stopping, outputs: Outputs, state: RunState) -> None:
    """Train all phases from wherever ``state`` stands, which is moved along.

    Raises:
        NonFiniteLossError: the loss became NaN or infinite; the last good checkpoint is untouched.
        InterruptedRun: Ctrl-C; the state was saved.
    """
    num_epochs = sum(phase.epochs for phase in phases)
    with InterruptRequest() as interrupt:
        while state.phase < len(phases):
            phase = phases[state.phase]
            training.model.set_trainable(phase.trainable_stages)
            while state.epoch_in_phase < phase.epochs:
                _train_epoch(training, phase, outputs, state, interrupt)
                validation = evaluate(training.model, training.val_loader, training.precision, interrupt)
                if validation is None:
                    raise outputs.interrupted(state, training)
                _require_finite(validation, state)
                is_best = _note_epoch(training, phase, stopping, outputs, state, validation, num_epochs)
                if is_best:
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


class _Pending(NamedTuple):
    """A step whose loss has not been looked at yet."""

    step: int
    learning_rate: float
    loss: Tensor
    indices: Tensor


def _train_epoch(
    training: Training, phase: Phase, outputs: Outputs, state: RunState, interrupt: InterruptRequest
) -> None:
    """Train the rest of the running epoch."""
    plan = training.batches.plan
    training.batches.start_at(state.epoch, state.step_in_epoch)
    training.model.train()
    pending: list[_Pending] = []
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
            loss = train_step(training, batch.to(training.precision.device), rate, state.step)
            pending.append(_Pending(state.step, rate, loss, batch.indices))
            state.step += 1
            state.step_in_epoch += 1
            state.train_images += len(batch.indices)
            bar.update(len(batch.indices))
            must_log = state.step % outputs.log_every == 0
            if must_log or interrupt.requested or state.step_in_epoch == plan.num_batches:
                _settle(pending, outputs.path_of, state)
                now = time.perf_counter()
                state.train_seconds += now - clock
                clock = now
                if must_log:
                    _note_step(outputs.tracker, phase, state, rate)
                bar.set_postfix(loss=f"{state.train_loss_sum / state.train_images:.3f}", lr=f"{rate:.1e}")
            if interrupt.requested:
                raise outputs.interrupted(state, training)


def train_step(training: Training, batch: Batch, learning_rate: float, step: int) -> Tensor:
    """One optimizer step; dropout and mixing depend on (seed, step) alone.

    Args:
        training: what to train with.
        batch: on the device.
        learning_rate: of this step.
        step: its number, from 0.

    Returns:
        The loss summed over the batch, fp32, on the device.
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
        losses = [weight * training.loss(logits, part_targets) for weight, logits in outputs]
        loss = torch.stack(losses).sum()
        # Divided by the whole batch, so that parts of any size add up to its mean.
        training.scaler.scale(loss / len(images)).backward()
        total += loss.detach()
    training.scaler.unscale_(training.optimizer)
    torch.nn.utils.clip_grad_norm_(training.model.parameters(), training.gradient_clip)
    set_learning_rate(training.optimizer, learning_rate)
    training.scaler.step(training.optimizer)
    training.scaler.update()
    training.optimizer.zero_grad(set_to_none=True)
    return total


def _settle(pending: list[_Pending], path_of: Callable[[int], str], state: RunState) -> None:
    """Bring the losses of the last steps over from the device, all at once, check and add them up.

    Raises:
        NonFiniteLossError: one of them is NaN or infinite.
    """
    losses = torch.stack([entry.loss for entry in pending]).cpu()
    for entry, loss in zip(pending, losses.tolist(), strict=True):
        if not math.isfinite(loss):
            files = [path_of(int(index)) for index in entry.indices]
            raise NonFiniteLossError(
                f"the loss is {loss} at step {entry.step} (epoch {state.epoch + 1}, learning rate "
                f"{entry.learning_rate:.3g}). The checkpoints from before are untouched. Lower --learning_rate, "
                "raise --warmup_epochs, or try --mixed_precision false. Images of the batch:\n  " + "\n  ".join(files)
            )
        state.train_loss_sum += loss
        state.window_loss_sum += loss
        state.window_images += len(entry.indices)
    pending.clear()


def _require_finite(validation: Validation, state: RunState) -> None:
    if not math.isfinite(validation.loss):
        raise NonFiniteLossError(
            f"the validation loss is {validation.loss} after step {state.step} (epoch {state.epoch + 1}). The "
            "checkpoints from before are untouched. Lower --learning_rate, raise --warmup_epochs, or try "
            "--mixed_precision false"
        )


@torch.inference_mode()
def evaluate(
    model: FineTuneModel, loader: DataLoader[Batch], precision: Precision, interrupt: InterruptRequest | None = None
) -> Validation | None:
    """Loss, accuracy and confusion matrix over all batches of ``loader``; None where Ctrl-C came in between."""
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


def _note_step(tracker: Tracker, phase: Phase, state: RunState, rate: float) -> None:
    numbers = {
        "phase": phase.name,
        "epoch": state.epoch + 1,
        "step": state.step,
        "learning_rate": rate,
        "train_loss": state.window_loss_sum / state.window_images,
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
    numbers = {
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
    outputs.tracker.numbers(numbers, state.step, "epoch")
    say(
        f"epoch {state.epoch + 1:3d}/{num_epochs}  train_loss {numbers['train_loss']:.4f}  "
        f"val_loss {validation.loss:.4f}  val_accuracy {100 * validation.accuracy:6.2f} %  "
        f"lr {numbers['learning_rate']:.1e}  {numbers['images_per_second']:5.0f} images/s  "
        f"{state.train_seconds:6.1f} s{'  best' if is_best else ''}"
    )
    return is_best


def save_best(model: FineTuneModel, outputs: Outputs, validation: Validation, state: RunState) -> None:
    """Write best_model.pt and draw its confusion matrix."""
    metrics = {"val_accuracy": validation.accuracy, "val_loss": validation.loss, "epoch": state.epoch + 1}
    model.save_checkpoint(outputs.folder / BEST_MODEL, config=outputs.identity.config, metrics=metrics)
    figure = draw_confusion_matrix(validation.confusion.numpy(), model.class_names)
    outputs.tracker.figure("confusion_matrix", figure, state.step)
