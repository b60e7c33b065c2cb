"""Epochs without gradient steps: the exact linear probe, and the mixture of weights."""

import time

from sat_vg.backbone_finetuning.data.loading.sampling import Part
from sat_vg.backbone_finetuning.evaluation.metrics import Validation
from sat_vg.backbone_finetuning.evaluation.tasks import TASKS
from sat_vg.backbone_finetuning.training.batch_sources import BatchSource, SizedBatches
from sat_vg.backbone_finetuning.training.checkpoint import RunState
from sat_vg.backbone_finetuning.training.linear_probe import (
    GOALS,
    NUM_FOLDS,
    LinearProbe,
    pooled_features,
    solve_linear_probe,
)
from sat_vg.backbone_finetuning.training.phases import Phase
from sat_vg.backbone_finetuning.training.record import Outputs
from sat_vg.backbone_finetuning.training.training import Training
from sat_vg.backbone_finetuning.training.validation import evaluate
from sat_vg.backbone_finetuning.utils.seeding import Purpose, derive_seed, torch_generator
from sat_vg.backbone_finetuning.utils.stop_signals import InterruptRequest
from sat_vg.backbone_finetuning.utils.terminal import say


def solve_head(
    training: Training,
    phase: Phase,
    source: BatchSource,
    outputs: Outputs,
    state: RunState,
    interrupt: InterruptRequest,
) -> None:
    """Replace the classifier by the exact linear probe on the frozen features."""
    clock = time.perf_counter()
    images = training.sources.batches.in_order(Part.PLAIN_TRAINING)
    features, targets = pooled_features(training.model, images, training.precision, interrupt, training.ranks)
    generator = torch_generator(derive_seed(training.seed, Purpose.HELD_OUT, state.step))
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
    chosen_by = describe_choice(probe, GOALS[task.name].unit)
    say(f"exact linear probe on {len(features)} images: L2 {probe.strength:.0e}{chosen_by}")


def describe_choice(probe: LinearProbe, unit: str) -> str:
    """What chose the strength of a probe, for the terminal."""
    if probe.held_out_loss is None or probe.held_out_score is None:
        return " (too few images to choose it by)"
    score = f"{100 * probe.held_out_score:.2f} {unit} held out"
    return f" (by {NUM_FOLDS} folds: log-loss {probe.held_out_loss:.4f}, {score})"


def mix_weights(
    training: Training,
    phase: Phase,
    source: BatchSource,
    outputs: Outputs,
    state: RunState,
    interrupt: InterruptRequest,
) -> None:
    """Replace the weights by the best ones between start and end of the phase before (WiSE-FT)."""
    clock = time.perf_counter()

    def validate(batches: SizedBatches) -> Validation:
        return evaluate(training.model, batches, training.precision, interrupt, replica=training.replica)

    if state.wise_ft_share is None:  # otherwise they are mixed, and what follows was interrupted
        mixed = training.start_weights.mix(training.average, lambda: validate(source.validation()))
        state.wise_ft_share = mixed.share
        say(f"phase {phase.name}: {mixed.description}")
    images = training.sources.batches.in_order(Part.PLAIN_TRAINING)
    found = validate(images.shared(training.ranks.share))
    state.train_images = sum(map(len, images.indices))
    state.train_loss_sum, state.train_seconds = found.loss * state.train_images, time.perf_counter() - clock
