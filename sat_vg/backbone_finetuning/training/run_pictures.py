"""What TensorBoard gets of the best model once, at the end of a run: curves, mistakes, and its view of the images."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from sat_vg.backbone_finetuning.data.loading.loaders import ImageBatches
from sat_vg.backbone_finetuning.data.loading.sampling import Part
from sat_vg.backbone_finetuning.evaluation.mistakes import most_confident_mistakes
from sat_vg.backbone_finetuning.evaluation.tasks import TASKS
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.models.probabilities import TaskName
from sat_vg.backbone_finetuning.reports.figures import draw_image_grid
from sat_vg.backbone_finetuning.reports.projector import Embedding, principal_components
from sat_vg.backbone_finetuning.training.batch_sources import image_values
from sat_vg.backbone_finetuning.training.epoch_curves import MOST_CLASSES, chart_names
from sat_vg.backbone_finetuning.training.tracking import FileTracker
from sat_vg.backbone_finetuning.training.training import Training
from sat_vg.backbone_finetuning.utils.precision import Precision
from sat_vg.backbone_finetuning.utils.printable import one_line
from sat_vg.backbone_finetuning.utils.terminal import progress

MOST_IMAGES = 1000
_MISTAKES, _DIRECTIONS, _THUMBNAIL = 12, 64, 48  # images, principal components, pixels
_WRONG_CLASSES = 3  # named over an image


@dataclass(frozen=True)
class Look:
    """What a model says of some validation images, on the CPU.

    Attributes:
        indices: N places in the split.
        targets: bool ``[N, num_classes]``, the classes that the images have.
        given: bool ``[N, num_classes]``, those that they are given.
        probabilities: float32 ``[N, num_classes]``.
        losses: float32 ``[N]``.
        vectors: float32 ``[N, D]``, what the classifier sees.
        thumbnails: uint8 ``[N, 3, S, S]``.
    """

    indices: list[int]
    targets: Tensor
    given: Tensor
    probabilities: Tensor
    losses: Tensor
    vectors: Tensor
    thumbnails: Tensor


def show_best_model(training: Training, best_model: Path, tracker: FileTracker, step: int) -> None:
    """Show curves of precision over recall, the most confident mistakes, and the vectors of validation images.

    One pass over the validation images, or over 1000 of them.

    Args:
        training: whose images and device are used; its model is left as it is.
        best_model: path of the weights.
        tracker: where it is shown.
        step: optimizer steps of the run.

    Raises:
        CheckpointError: the file cannot be read.
        WriteError: the log cannot be written.
    """
    model = FineTuneModel.load_checkpoint(best_model)
    training.precision.place_model(model)
    look = look_over(model, training.sources.batches, training.precision)
    show_precision_recall(model, look, tracker, step)
    show_mistakes(model, look, training.sources.batches, tracker, step)
    columns = {
        "class": [_names(model, row) for row in look.targets],
        "predicted": [_names(model, row) for row in look.given],
        "confidence": [f"{share:.3f}" for share in look.probabilities.amax(1).tolist()],
    }
    vectors = principal_components(look.vectors.numpy(), _DIRECTIONS)
    tracker.embedding(Embedding("best_model", vectors, columns, look.thumbnails.permute(0, 2, 3, 1).numpy()))


@torch.inference_mode()
def look_over(model: FineTuneModel, batches: ImageBatches, precision: Precision) -> Look:
    """Run a model over the validation images, or over so many of them at equal distances, so of all classes."""
    images = batches.in_order(Part.VALIDATION)
    count = len(batches.parts[Part.VALIDATION])
    if count > MOST_IMAGES:
        places = torch.linspace(0, count - 1, MOST_IMAGES, dtype=torch.float64).round().long()
        images.indices = [few.tolist() for few in places.split(batches.in_order_size)]
    model.eval()
    task = TASKS[model.task]
    parts: list[tuple[Tensor, ...]] = []
    for batch in progress(images, desc="pictures", unit="batch"):
        pictures = model.preprocessing.pictures(batch.images).float()
        small = functional.interpolate(pictures, size=_THUMBNAIL, mode="area").round().to(torch.uint8)
        batch = batch.to(precision.device)
        with precision.autocast():
            vectors = model.forward_pooled(image_values(model, precision, batch))
            logits = model.forward_head(vectors).float()
        said = task.given(logits), task.probabilities(logits), task.losses(logits, batch.targets)
        parts.append((batch.targets > 0.5, *said, vectors.float(), small))
    columns = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
    return Look([index for few in images.indices for index in few], *columns)


def show_precision_recall(model: FineTuneModel, look: Look, tracker: FileTracker, step: int) -> None:
    """Show a curve of all classes together, and one of each class that has images, unless there are very many."""
    is_class, shares = look.targets.numpy(), look.probabilities.numpy()
    tracker.precision_recall("precision_recall/all classes", is_class.ravel(), shares.ravel(), step)
    if model.num_classes > MOST_CLASSES:
        return
    for label, name in enumerate(chart_names(model.class_names)):
        if is_class[:, label].any():
            tracker.precision_recall(f"precision_recall_by_class/{name}", is_class[:, label], shares[:, label], step)


def show_mistakes(model: FineTuneModel, look: Look, batches: ImageBatches, tracker: FileTracker, step: int) -> None:
    """Draw the images that the model is most wrong about; where none is wrong, nothing."""
    shown = _MISTAKES_OF[model.task]
    hits = (look.given == look.targets).all(1)
    wrong = most_confident_mistakes(shown.severity(look), hits, _MISTAKES)
    if not wrong:
        return
    dataset = batches.parts[Part.VALIDATION]
    images = model.preprocessing.pictures(torch.stack([dataset[0, look.indices[place]][0] for place in wrong]))
    titles = [shown.title(model, look, place) for place in wrong]
    heading = shown.heading.format(f"{int((~hits).sum())} in {len(hits)}")
    tracker.figure("mistakes", draw_image_grid(images.permute(0, 2, 3, 1).numpy(), titles, heading), step)


@dataclass(frozen=True)
class MistakesOf:
    """How mistakes are shown.

    Attributes:
        severity: ``[N]``, by which the worst are chosen.
        title: of the image at a place of the look, in lines.
        heading: of the picture, with a place for how many there are.
    """

    severity: Callable[[Look], Tensor]
    title: Callable[[FineTuneModel, Look, int], str]
    heading: str


def _one_class(model: FineTuneModel, look: Look, place: int) -> str:
    true, given = _names(model, look.targets[place]), _names(model, look.given[place])
    return f"{true}\n→ {given}\n{100 * float(look.probabilities[place].max()):.1f} %"


def _several_classes(model: FineTuneModel, look: Look, place: int) -> str:
    """A line for each of the worst wrong classes."""
    shares, targets = look.probabilities[place], look.targets[place]
    wrong = (look.given[place] != targets).nonzero()[:, 0]
    wrong = wrong[(shares[wrong] - targets[wrong].float()).abs().argsort(descending=True, stable=True)]
    lines = [
        f"{'lacks' if targets[index] else 'adds'} {one_line(model.class_names[index])} {100 * shares[index]:.0f} %"
        for index in wrong[:_WRONG_CLASSES].tolist()
    ]
    more = len(wrong) - _WRONG_CLASSES
    return "\n".join([*lines, f"and {more} more"] if more > 0 else lines)


_MISTAKES_OF: dict[TaskName, MistakesOf] = {
    "single_label": MistakesOf(
        lambda look: look.probabilities.amax(1),
        _one_class,
        "the best model's most confident mistakes, of {} validation images\n"
        "true class → predicted class, with its probability",
    ),
    "multi_label": MistakesOf(
        lambda look: look.losses,
        _several_classes,
        "the best model's worst mistakes, of {} validation images\n"
        "it lacks a class that is there, or adds one that is not, of this probability",
    ),
}


def _names(model: FineTuneModel, row: Tensor) -> str:
    """The names of the classes that are set in a row, with commas between."""
    return ", ".join(one_line(model.class_names[index]) for index in row.nonzero()[:, 0].tolist()) or "(none)"
