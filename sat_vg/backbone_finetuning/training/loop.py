"""The training loop, from top to bottom: phases, epochs, steps, validation, saving."""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from sat_vg.backbone_finetuning.data.loading.loaders import Batch
from sat_vg.backbone_finetuning.data.loading.sampling import Part
from sat_vg.backbone_finetuning.evaluation.metrics import Validation
from sat_vg.backbone_finetuning.evaluation.tasks import TASKS
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.training.batch_sources import BatchSource, SizedBatches, image_values
from sat_vg.backbone_finetuning.training.checkpoint import RunState
from sat_vg.backbone_finetuning.training.fsdp_tensors import full_tensor
from sat_vg.backbone_finetuning.training.interrupts import InterruptRequest
from sat_vg.backbone_finetuning.training.linear_probe import GOALS, pooled_features, solve_linear_probe
from sat_vg.backbone_finetuning.training.micro_batches import restore_point
from sat_vg.backbone_finetuning.training.optim import set_learning_rate
from sat_vg.backbone_finetuning.training.phases import Phase
from sat_vg.backbone_finetuning.training.record import Outputs, note_epoch, note_spikes, note_step, save_best
from sat_vg.backbone_finetuning.training.replicas import Replica, SingleReplica
from sat_vg.backbone_finetuning.training.step_results import REMEDY, PendingSteps, StepResult
from sat_vg.backbone_finetuning.training.training import Stopping, Training
from sat_vg.backbone_finetuning.utils.errors import NonFiniteLossError
from sat_vg.backbone_finetuning.utils.precision import Precision
from sat_vg.backbone_finetuning.utils.printable import counted
from sat_vg.backbone_finetuning.utils.seeding import Purpose, derive_seed, seed_default_generator, torch_generator
from sat_vg.backbone_finetuning.utils.terminal import progress, say


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
            training.model.set_trainable(phase.trainable_stages, phase.keeps_statistics)
            training.replica.enter_phase()
            training.start_weights.enter(phase, state.begins_phase)
            source = training.sources.for_phase(phase, lambda: interrupt.requested)
            if source is None:
                raise outputs.interrupted(state, training, interrupt)
            while state.epoch_in_phase < phase.epochs:
                _EPOCHS[phase.method](training, phase, source, outputs, state, interrupt)
                with training.average.applied(), training.profile.span("validation"):
                    validation = evaluate(
                        training.model,
                        source.validation(),
                        training.precision,
                        interrupt,
                        source.values,
                        source.start,
                        training.replica,
                    )
                if validation is None:
                    raise outputs.interrupted(state, training, interrupt)
                _require_finite(validation, state)
                is_best = note_epoch(training, phase, stopping, outputs, state, validation, num_epochs)
                if is_best:
                    with training.average.applied():
                        save_best(training, outputs, validation, state)
                state.end_epoch()
                if stopping.patience and state.epochs_without_improvement >= stopping.patience:
                    say(f"stopped early: no better {stopping.metric} for {counted(stopping.patience, 'epoch')}")
                    break
                if state.epoch % outputs.save_frequency == 0 and state.epoch < num_epochs:
                    outputs.save(state, training)
            state.end_phase(is_last=state.phase + 1 == len(phases))
        state.finished = True
        outputs.save(state, training)


def _train_epoch(
    training: Training,
    phase: Phase,
    source: BatchSource,
    outputs: Outputs,
    state: RunState,
    interrupt: InterruptRequest,
) -> None:
    """Train the rest of the running epoch."""
    plan = training.plan
    training.model.train()
    pending = PendingSteps(outputs.path_of, training.scaler.is_enabled(), training.ranks)
    bar = progress(total=plan.num_samples, initial=state.train_images, desc=f"epoch {state.epoch + 1}", unit="img")
    wholes = plan.batches(state.epoch)  # of which this process computes its share
    clock = time.perf_counter()
    with bar:
        for batch in training.profile.waiting(source.training(state.epoch, state.step_in_epoch)):
            whole = wholes[state.step_in_epoch]
            # The middle of the step, so that the first one of a warm-up is not lost to a rate of zero.
            position = state.epoch_in_phase + (state.step_in_epoch + 0.5) / plan.num_batches
            lowest = training.schedule.lowest(position, phase.epochs)
            rate = max(lowest, phase.lr_scale * training.schedule.at(position, phase.epochs, state.plateau_factor))
            result = train_step(training, source, batch, rate, state.step, len(whole), lowest)
            state.micro_batch_size = training.micro_batches.size
            pending.add(state.step, rate, result, whole)
            state.step += 1
            state.step_in_epoch += 1
            state.train_images += len(whole)
            bar.update(len(whole))
            must_log = state.step % outputs.log_every == 0
            must_stop, is_due = training.ranks.all_reduce_max(interrupt.requested, outputs.saves.is_due(state.step))
            must_save = must_stop or is_due
            if must_log or must_save or state.step_in_epoch == plan.num_batches:
                note_spikes(outputs.tracker, phase, state, pending.flush(state))
                now = time.perf_counter()
                state.train_seconds += now - clock
                clock = now
                if must_log:
                    note_step(outputs.tracker, phase, state, rate, pending.gradient_norm)
                bar.set_postfix(loss=f"{state.train_loss_sum / state.train_images:.3f}", lr=f"{rate:.1e}")
            if must_stop:
                raise outputs.interrupted(state, training, interrupt)
            if must_save:
                outputs.save(state, training)


def _solve_head(
    training: Training,
    phase: Phase,
    source: BatchSource,
    outputs: Outputs,
    state: RunState,
    interrupt: InterruptRequest,
) -> None:
    """Put the exact linear probe on the frozen features in the classifier's place."""
    clock = time.perf_counter()
    images = training.sources.batches.in_order(Part.PLAIN_TRAINING)
    found = pooled_features(training.model, images, training.precision, interrupt, training.ranks)
    if found is None:
        raise outputs.interrupted(state, training, interrupt)
    generator = torch_generator(derive_seed(training.seed, Purpose.HELD_OUT, state.step))
    features, targets = found
    model, task = training.model, TASKS[training.model.task]
    probe = training.ranks.broadcast_from_rank0(
        lambda: solve_linear_probe(
            features, task.labels(targets), model.num_classes, generator, model.classifier_has_bias, task.name
        )
    )
    training.model.set_classifier(probe.weight, probe.bias)
    training.average.restart()
    weight, bias = probe.weight.to(features.device), probe.bias.to(features.device)
    logits = features @ weight.T + bias
    state.train_loss_sum = float(task.loss(logits, targets))
    state.train_images, state.train_seconds = len(features), time.perf_counter() - clock
    score, unit = probe.held_out_score, GOALS[task.name].unit
    chosen_by = "" if score is None else f" ({100 * score:.2f} {unit} held out)"
    say(f"exact linear probe on {len(features)} images: L2 {probe.strength:.0e}{chosen_by}")


def _mix_weights(
    training: Training,
    phase: Phase,
    source: BatchSource,
    outputs: Outputs,
    state: RunState,
    interrupt: InterruptRequest,
) -> None:
    """Put the best weights between the start and the end of the phase before in their place."""
    clock = time.perf_counter()

    def look(batches: SizedBatches) -> Validation | None:
        return evaluate(training.model, batches, training.precision, interrupt, replica=training.replica)

    if state.wise_ft_share is None:  # or else what came after was interrupted
        mixed = training.start_weights.mix(training.average, lambda: look(source.validation()))
        if mixed is None:
            raise outputs.interrupted(state, training, interrupt)
        state.wise_ft_share = mixed.share
        say(f"phase {phase.name}: {mixed.description}")
    images = training.sources.batches.in_order(Part.PLAIN_TRAINING)
    found = look(images.shared(training.ranks.share))
    if found is None:
        raise outputs.interrupted(state, training, interrupt)
    state.train_images = sum(map(len, images.indices))
    state.train_loss_sum, state.train_seconds = found.loss * state.train_images, time.perf_counter() - clock


_EPOCHS = {"gradient": _train_epoch, "exact_head": _solve_head, "mix": _mix_weights}


def train_step(
    training: Training,
    source: BatchSource,
    batch: Batch,
    learning_rate: float,
    step: int,
    num_images: int | None = None,
    lowest_rate: float = 0.0,
) -> StepResult:
    """One optimizer step; dropout and mixing depend on (seed, step) alone, dropout on the process besides.

    Args:
        training: what to train with.
        source: where the batch comes from.
        batch: as it left the source: this process's share.
        learning_rate: of this step.
        step: its number, from 0.
        num_images: of the whole batch; unset: this process computes all of it.
        lowest_rate: the least that factors of stages and head leave of the learning rate.

    Returns:
        Loss of this process's share and norm of the whole gradient, on the device.
    """
    seed = derive_seed(training.seed, Purpose.STEP, step, *training.ranks.share.stream)
    with training.profile.span("copy and mix"):
        batch = batch.to(training.precision.device)
        values = training.resizing(source.values(batch), step)
        values, targets = training.mixing(values, batch.targets, step)
    num_images = num_images or len(targets)
    loss = training.micro_batches.run_with_oom_retry(
        training.replica.images_to_divide(len(targets), num_images),
        lambda parts: _add_gradients(
            training,
            source.start,
            seed,
            num_images,
            values.tensor_split(parts),
            targets.tensor_split(parts),
        ),
        undo=restore_point(training.model, training.optimizer),
    )
    with training.profile.span("optimizer"):
        training.replica.sync_buffers()
        training.scaler.unscale_(training.optimizer)
        norm = full_tensor(torch.nn.utils.clip_grad_norm_(training.model.parameters(), training.gradient_clip))
        set_learning_rate(training.optimizer, learning_rate, lowest_rate)
        training.scaler.step(training.optimizer)
        training.scaler.update()
        training.optimizer.zero_grad(set_to_none=True)
        training.average.update(step)
    return StepResult(loss, norm)


def _add_gradients(
    training: Training, start: int, seed: int, num_images: int, values: Sequence[Tensor], targets: Sequence[Tensor]
) -> Tensor:
    """Add up the gradients of a share's parts; returns their loss, summed over the images."""
    seed_default_generator(seed, training.precision.device)
    total = torch.zeros((), device=training.precision.device)
    # Divided by the whole batch, so that parts of any size add up to its mean; processes' gradients are averaged.
    divisor = num_images / training.ranks.count
    for number, (part, part_targets) in enumerate(zip(values, targets, strict=True), start=1):
        with training.replica.accumulating(is_last=number == len(values)):
            with training.profile.span("forward"):
                with training.precision.autocast():
                    outputs = training.replica.outputs(part, start)
                losses = (weight * training.loss(logits, part_targets) for weight, logits in outputs)
                loss = sum(losses, start=total.new_zeros(()))
            with training.profile.span("backward"):
                training.scaler.scale(loss / divisor).backward()
        total += loss.detach()
    return total


def _require_finite(validation: Validation, state: RunState) -> None:
    if not math.isfinite(validation.loss):
        raise NonFiniteLossError(
            f"the validation loss is {validation.loss} after step {state.step} (epoch {state.epoch + 1}). The "
            f"checkpoints from before are untouched. {REMEDY}"
        )


@torch.no_grad()  # not inference_mode: the memory in which weights in shards are put together trains, too
def evaluate(
    model: FineTuneModel,
    batches: SizedBatches,
    precision: Precision,
    interrupt: InterruptRequest | None = None,
    values: Callable[[Batch], Tensor] | None = None,
    start: int = 0,
    replica: Replica | None = None,
) -> Validation | None:
    """Loss, accuracy and scores by class over all batches of all processes; None where a stop was asked for.

    Args:
        model: on its device.
        batches: of images, or of what ``values`` takes: this process's share.
        precision: device and formats.
        interrupt: looked at after each batch.
        values: what the model takes, from a batch on the device; unset: its images, normalised.
        start: stages that lie behind the values.
        replica: of the processes that share the batches; unset: this one is alone.
    """
    model.eval()
    replica = replica or SingleReplica(model.training_outputs)
    interrupt = interrupt or InterruptRequest()
    values = values or partial(image_values, model, precision)
    task = TASKS[model.task]
    sums = task.sums(model.num_classes, precision.device)
    for batch in progress(replica.in_step(batches, interrupt), total=len(batches), desc="validation", unit="batch"):
        batch = batch.to(precision.device)
        with precision.autocast():
            logits = model(values(batch), start).float()
        sums.add(logits, batch.targets, task.loss(logits, batch.targets))
    if any(replica.ranks.all_reduce_max(interrupt.requested)):
        return None
    sums.gather(replica.ranks)
    return sums.result()
