"""What a run is, in words: what the command says at its start, kept for TensorBoard."""

from collections.abc import Iterable, Sequence

from sat_vg.backbone_finetuning.data.sources.splits import Splits
from sat_vg.backbone_finetuning.models.artifact import current_versions
from sat_vg.backbone_finetuning.training.phases import Phase
from sat_vg.backbone_finetuning.training.training import Training
from sat_vg.backbone_finetuning.utils.printable import one_line


def describe_run(training: Training, phases: Sequence[Phase], splits: Splits) -> str:
    """Data, model, weights, phases, steps, device and versions, as Markdown."""
    model, plan = training.model, training.plan
    smallest, largest = plan.batch_sizes
    sizes = f"{largest}" if smallest == largest else f"{smallest} or {largest}"
    lines = [
        f"data: {splits.description}",
        f"model: {model.backbone}, {sum(model.parameter_counts().values()) / 1e6:.2f} M parameters",
        model.weights_report,
        *(f"phase {number}: {describe_phase(phase)}" for number, phase in enumerate(phases, start=1)),
        f"steps: {plan.num_batches} an epoch, of {sizes} images",
        f"device: {training.precision.description}",
        "versions: " + ", ".join(f"{name} {version}" for name, version in current_versions().items()),
    ]
    return code(one_line(line) for line in lines)


def describe_phase(phase: Phase) -> str:
    """Name, length and what is trained."""
    epochs = f"{phase.epochs} epoch{'' if phase.epochs == 1 else 's'}"
    if phase.method == "exact_head":
        return f"{phase.name}, {epochs}, the head solved for"
    if phase.method == "mix":
        return f"{phase.name}, {epochs}, mixes the first and the last weights of the phase before"
    return f"{phase.name}, {epochs}, trains {', '.join((*phase.trainable_stages, 'head'))}{phase.details}"


def code(lines: Iterable[str]) -> str:
    """Lines that Markdown shows as they are, whatever stands in them."""
    return "".join(f"    {line}\n" for line in lines)
