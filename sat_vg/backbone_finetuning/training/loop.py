"""The training loop, from top to bottom: phases, epochs, steps, validation, saving."""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sat_vg.backbone_finetuning.data.loading.loaders import Batch
from sat_vg.backbone_finetuning.training.batch_sources import BatchSource
from sat_vg.backbone_finetuning.training.checkpoint import RunState
from sat_vg.backbone_finetuning.training.fsdp_tensors import full_tensor
from sat_vg.backbone_finetuning.training.gradient_free import mix_weights, solve_head
from sat_vg.backbone_finetuning.training.optim import set_learning_rate
from sat_vg.backbone_finetuning.training.phases import Method, Phase
from sat_vg.backbone_finetuning.training.record import Outputs, note_epoch, note_spikes, note_step, save_best
from sat_vg.backbone_finetuning.training.step_results import PendingSteps, StepResult
from sat_vg.backbone_finetuning.training.training import Stopping, Training
from sat_vg.backbone_finetuning.training.validation import evaluate, require_finite
from sat_vg.backbone_finetuning.utils.printable import counted
from sat_vg.backbone_finetuning.utils.seeding import Purpose, derive_seed, seed_default_generator
from sat_vg.backbone_finetuning.utils.stop_signals import InterruptRequest, StopRequested
from sat_vg.backbone_finetuning.utils.terminal import progress, say


def fit(training: Training, phases: Sequence[Phase], stopping: Stopping, outputs: Outputs, state: RunState) -> None:
    """Train all phases from where ``state`` stands, and update ``state``.

    Raises:
        NonFiniteLossError: loss, gradient or weights became NaN or infinite; the last good checkpoint is untouched.
        WriteError: a file of the run cannot be written; those from before are untouched.
        InterruptedRun: Ctrl-C, SIGTERM or SIGUSR1; the state was saved.
    """
    with InterruptRequest() as interrupt:
        try:
            train_phases(training, phases, stopping, outputs, state, interrupt)
        except StopRequested:
            raise outputs.interrupted(state, training, interrupt) from None
        finally:
            training.model.drop_folded()


def train_phases(
    training: Training,
    phases: Sequence[Phase],
    stopping: Stopping,
    outputs: Outputs,
    state: RunState,
    interrupt: InterruptRequest,
) -> None:
    """All phases, epoch by epoch: train, validate, log, save. Raises StopRequested where a signal has come."""
    num_epochs = sum(phase.epochs for phase in phases)
    while state.phase < len(phases):
        # Begin the phase: freeze stages, remember the weights, choose between images and stored features.
        phase = phases[state.phase]
        phase.apply_to(training.model)
        training.replica.enter_phase()
        training.start_weights.enter(phase, state.begins_phase)
        training.model.fold_frozen(training.precision.autocast_dtype)
        sources = training.sources.for_phase(phase, lambda: interrupt.requested)
        while state.epoch_in_phase < phase.epochs:
            # Train one epoch, or the rest of it.
            EPOCHS[phase.method](training, phase, sources.training, outputs, state, interrupt)
            # Validate, with the moving average of the weights if there is one.
            recorders = outputs.best_outputs.recorders(of_images=sources.validation.start == 0)
            with training.average.applied(), training.profile.span("validation"):
                validation = evaluate(
                    training.model,
                    sources.validation.validation(),
                    training.precision,
                    interrupt,
                    sources.validation,
                    training.replica,
                    recorders,
                )
            require_finite(validation, state)
            # Log; save the best model.
            is_best = note_epoch(training, phase, stopping, outputs, state, validation, num_epochs)
            if is_best:
                with training.average.applied():
                    save_best(training, outputs, validation, state)
                outputs.best_outputs.keep(training.ranks)
            # Stop early, or save the state and go on.
            state.end_epoch()
            if stopping.patience and state.epochs_without_improvement >= stopping.patience:
                say(f"stopped early: no better {stopping.metric} for {counted(stopping.patience, 'epoch')}")
                break
            if state.epoch % outputs.save_frequency == 0 and state.epoch < num_epochs:
                outputs.save(state, training)
        state.end_phase(is_last=state.phase + 1 == len(phases))
    state.finished = True
    outputs.save(state, training)


def train_epoch(
    training: Training,
    phase: Phase,
    source: BatchSource,
    outputs: Outputs,
    state: RunState,
    interrupt: InterruptRequest,
) -> None:
    """Train the rest of the running epoch by gradient steps."""
    plan, schedule = training.plan, training.schedule
    training.model.train()
    pending = PendingSteps(outputs.path_of, training.scaler.is_enabled(), training.ranks)
    bar = progress(total=plan.num_samples, initial=state.train_images, desc=f"epoch {state.epoch + 1}", unit="img")
    whole_batches = plan.batches(state.epoch)  # of each, this process computes its share
    clock = time.perf_counter()
    with bar:
        for batch in training.profile.waiting(source.training(state.epoch, state.step_in_epoch)):
            # Learning rate: at the middle of the step, or the first step of a warm-up would have a rate of zero.
            whole_batch = whole_batches[state.step_in_epoch]
            position = state.epoch_in_phase + (state.step_in_epoch + 0.5) / plan.num_batches
            lowest = schedule.lowest(position, phase.epochs)
            rate = max(lowest, phase.lr_scale * schedule.at(position, phase.epochs, state.plateau_factor))
            # Step.
            result = train_step(training, source, batch, rate, state.step, len(whole_batch), lowest)
            state.micro_batch_size = training.micro_batches.size
            pending.add(state.step, rate, result, whole_batch)
            state.step += 1
            state.step_in_epoch += 1
            state.train_images += len(whole_batch)
            bar.update(len(whole_batch))
            # Log: only now do losses leave the device.
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
            # Save within the epoch.
            if must_stop:
                raise StopRequested
            if must_save:
                outputs.save(state, training)


EPOCHS: dict[Method, Callable[[Training, Phase, BatchSource, Outputs, RunState, InterruptRequest], None]] = {
    "gradient": train_epoch,
    "exact_head": solve_head,
    "mix": mix_weights,
}


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
        training: model, optimizer and the rest.
        source: of the batch.
        batch: on the host: this process's share.
        learning_rate: of this step.
        step: its number, from 0.
        num_images: of the whole batch; unset: this process computes all of it.
        lowest_rate: lower bound of the learning rate after the factors of stages and head.

    Returns:
        Loss of this process's share and norm of the whole gradient, on the device.
    """
    optimizer, precision = training.optimizer, training.precision
    replica, scaler, profile = training.replica, training.scaler, training.profile

    # Copy to the device, normalise, resize, mix.
    with profile.span("copy and mix"):
        batch = batch.to(precision.device)
        values = training.resizing(source.values(batch), step)
        values, targets = training.mixing(values, batch.targets, step)
    batch_size = num_images or len(targets)
    seed = derive_seed(training.seed, Purpose.STEP, step, *training.ranks.share.stream)

    def forward_backward(num_parts: int) -> Tensor:
        """Accumulate the gradients of so many micro-batches; returns their loss, summed over the images."""
        seed_default_generator(seed, precision.device)  # for dropout
        loss_sum = torch.zeros((), device=precision.device)
        # Divided by the whole batch, so that parts of any size add up to its mean; processes' gradients are averaged.
        divisor = batch_size / training.ranks.count
        parts = zip(values.tensor_split(num_parts), targets.tensor_split(num_parts), strict=True)
        for number, (part, part_targets) in enumerate(parts, start=1):
            with replica.accumulating(is_last=number == num_parts):
                # Forward and loss; auxiliary heads have losses with weights of their own.
                with profile.span("forward"):
                    with precision.autocast():
                        outputs = replica.outputs(part, source.start)
                    losses = (weight * training.loss(logits, part_targets) for weight, logits in outputs)
                    loss = sum(losses, start=loss_sum.new_zeros(()))
                # Scaled backward.
                with profile.span("backward"):
                    scaler.scale(loss / divisor).backward()
            loss_sum += loss.detach()
        return loss_sum

    loss_sum = training.micro_batches.run_with_oom_retry(
        replica.num_images_to_split(len(targets), batch_size),
        forward_backward,
        undo=training.restore_point.take().bring_back,
    )
    with profile.span("optimizer"):
        # Unscale and clip.
        replica.sync_buffers()
        scaler.unscale_(optimizer)
        norm = full_tensor(torch.nn.utils.clip_grad_norm_(training.parameters, training.gradient_clip))
        # Optimizer step; float16 skips it where a gradient overflowed.
        set_learning_rate(optimizer, learning_rate, lowest_rate)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        # Moving average of the weights.
        training.average.update(step)
    return StepResult(loss_sum, norm)
