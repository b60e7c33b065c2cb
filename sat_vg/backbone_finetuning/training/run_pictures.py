"""Pictures in the record: training images at its start; at its end curves, mistakes and vectors of the best model."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from sat_vg.backbone_finetuning.data.loading.loaders import ImageBatches
from sat_vg.backbone_finetuning.data.loading.sampling import Part
from sat_vg.backbone_finetuning.data.sources.splits import Splits
from sat_vg.backbone_finetuning.evaluation.assessment import names_of_set
from sat_vg.backbone_finetuning.evaluation.mistakes import most_confident_mistakes
from sat_vg.backbone_finetuning.evaluation.tasks import TASKS
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.reports.figures import draw_image_grid, in_lines
from sat_vg.backbone_finetuning.reports.projector import Embedding, principal_components
from sat_vg.backbone_finetuning.training.batch_sources import image_values
from sat_vg.backbone_finetuning.training.epoch_curves import MOST_CLASSES, chart_names
from sat_vg.backbone_finetuning.training.tracking import FileTracker, Tracker
from sat_vg.backbone_finetuning.training.training import Training
from sat_vg.backbone_finetuning.utils.precision import Precision
from sat_vg.backbone_finetuning.utils.terminal import progress

MOST_IMAGES = 1000
_MISTAKES, _DIRECTIONS, _THUMBNAIL = 12, 64, 48  # images, principal components, pixels


@dataclass(frozen=True)
class ValidationSnapshot:
    """A model's outputs on some validation images, on the CPU.

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


def show_training_images(training: Training, splits: Splits, tracker: Tracker) -> None:
    """Draw the first images of the run as the augmentation hands them to the model."""
    dataset = training.sources.batches.parts[Part.TRAINING]
    samples = [dataset[0, index] for index in training.plan.batches(epoch=0)[0][:16]]
    images = training.model.preprocessing.pictures(torch.stack([image for image, _, _ in samples]))
    titles = [in_lines(splits.train.name_of(label)) for _, label, _ in samples]
    heading = "training images of the first step, as the model sees them before normalisation"
    tracker.figure("training_images", draw_image_grid(images.permute(0, 2, 3, 1).numpy(), titles, heading), step=0)


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
    seen = validation_snapshot(model, training.sources.batches, training.precision)
    show_precision_recall(model, seen, tracker, step)
    show_mistakes(model, seen, training.sources.batches, tracker, step)
    columns = {
        "class": [names_of_set(row, model.class_names) for row in seen.targets],
        "predicted": [names_of_set(row, model.class_names) for row in seen.given],
        "confidence": [f"{share:.3f}" for share in seen.probabilities.amax(1).tolist()],
    }
    vectors = principal_components(seen.vectors.numpy(), _DIRECTIONS)
    tracker.embedding(Embedding("best_model", vectors, columns, seen.thumbnails.permute(0, 2, 3, 1).numpy()))


@torch.inference_mode()
def validation_snapshot(model: FineTuneModel, batches: ImageBatches, precision: Precision) -> ValidationSnapshot:
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
    return ValidationSnapshot([index for few in images.indices for index in few], *columns)


def show_precision_recall(model: FineTuneModel, seen: ValidationSnapshot, tracker: FileTracker, step: int) -> None:
    """Show a curve of all classes together, and one of each class that has images, unless there are very many."""
    is_class, shares = seen.targets.numpy(), seen.probabilities.numpy()
    tracker.precision_recall("precision_recall/all classes", is_class.ravel(), shares.ravel(), step)
    if model.num_classes > MOST_CLASSES:
        return
    for label, name in enumerate(chart_names(model.class_names)):
        if is_class[:, label].any():
            tracker.precision_recall(f"precision_recall_by_class/{name}", is_class[:, label], shares[:, label], step)


def show_mistakes(
    model: FineTuneModel, seen: ValidationSnapshot, batches: ImageBatches, tracker: FileTracker, step: int
) -> None:
    """Draw the images that the model is most wrong about; where none is wrong, nothing."""
    task = TASKS[model.task]
    hits = (seen.given == seen.targets).all(1)
    wrong = most_confident_mistakes(task.severity(seen.probabilities, seen.losses), hits, _MISTAKES)
    if not wrong:
        return
    dataset = batches.parts[Part.VALIDATION]
    images = model.preprocessing.pictures(torch.stack([dataset[0, seen.indices[place]][0] for place in wrong]))
    rows = zip(seen.targets[wrong], seen.given[wrong], seen.probabilities[wrong], strict=True)
    titles = [task.mistake_title(*row, model.class_names) for row in rows]
    heading = task.mistakes_heading.format(f"{int((~hits).sum())} in {len(hits)}")
    tracker.figure("mistakes", draw_image_grid(images.permute(0, 2, 3, 1).numpy(), titles, heading), step)
