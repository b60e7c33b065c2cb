"""Pictures in the record: training images at its start; at its end curves, mistakes and vectors of the best model."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sat_vg.backbone_finetuning.data.loading.loaders import ImageBatches, Pass
from sat_vg.backbone_finetuning.data.loading.sampling import Part
from sat_vg.backbone_finetuning.data.sources.splits import Splits
from sat_vg.backbone_finetuning.evaluation.mistakes import most_confident_mistakes
from sat_vg.backbone_finetuning.evaluation.predictions import names_of_set
from sat_vg.backbone_finetuning.evaluation.tasks import TASKS, Task
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.reports.projector import Embedding, principal_components
from sat_vg.backbone_finetuning.reports.record_pictures import draw_image_grid, in_lines
from sat_vg.backbone_finetuning.training.epoch_curves import MOST_CLASSES, chart_names
from sat_vg.backbone_finetuning.training.image_outputs import (
    ImageOutputs,
    SampleRecorder,
    Thumbnails,
    sampled_places,
)
from sat_vg.backbone_finetuning.training.tracking import FileTracker, Tracker
from sat_vg.backbone_finetuning.training.training import Training
from sat_vg.backbone_finetuning.training.validation import evaluate
from sat_vg.backbone_finetuning.utils.precision import Precision
from sat_vg.backbone_finetuning.utils.ranks import SingleProcess
from sat_vg.backbone_finetuning.utils.terminal import progress

_MISTAKES, _DIRECTIONS = 12, 64  # images, principal components


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
    """

    indices: list[int]
    targets: Tensor
    given: Tensor
    probabilities: Tensor
    losses: Tensor
    vectors: Tensor


def show_training_images(training: Training, splits: Splits, tracker: Tracker) -> None:
    """Draw the first images of the run as the augmentation hands them to the model."""
    dataset = training.sources.batches.parts[Part.TRAINING]
    samples = [dataset[0, index] for index in training.plan.batches(epoch=0)[0][:16]]
    images = training.model.preprocessing.pictures(torch.stack([image for image, _, _ in samples]))
    titles = [in_lines(splits.train.name_of(label)) for _, label, _ in samples]
    heading = "training images of the first step, as the model sees them before normalisation"
    tracker.figure("training_images", draw_image_grid(images.permute(0, 2, 3, 1).numpy(), titles, heading), step=0)


def show_best_model(
    training: Training, outputs: ImageOutputs, thumbnails: Thumbnails, tracker: FileTracker, step: int
) -> None:
    """Show curves of precision over recall, the most confident mistakes, and the vectors of validation images.

    Args:
        training: whose images and class names are used.
        outputs: of the best model.
        thumbnails: of the same images; those that are missing are made.
        tracker: where it is shown.
        step: optimizer steps of the run.

    Raises:
        WriteError: the log cannot be written.
    """
    model, batches = training.model, training.sources.batches
    complete(thumbnails, batches)
    seen = validation_snapshot(TASKS[model.task], outputs)
    show_precision_recall(model, seen, tracker, step)
    show_mistakes(model, seen, batches, tracker, step)
    columns = {
        "class": [names_of_set(row, model.class_names) for row in seen.targets],
        "predicted": [names_of_set(row, model.class_names) for row in seen.given],
        "confidence": [f"{share:.3f}" for share in seen.probabilities.amax(1).tolist()],
    }
    vectors = principal_components(seen.vectors.numpy(), _DIRECTIONS)
    tracker.embedding(Embedding("best_model", vectors, columns, thumbnails.stack().permute(0, 2, 3, 1).numpy()))


def outputs_of_file(training: Training, best_model: Path) -> ImageOutputs:
    """The outputs of a best_model.pt, by a pass over the validation images: for a best epoch before a resume.

    Raises:
        CheckpointError: the file cannot be read.
    """
    model = FineTuneModel.load_checkpoint(best_model)
    training.precision.place_model(model)
    return outputs_on_images(model, training.sources.batches, training.precision)


def outputs_on_images(model: FineTuneModel, batches: ImageBatches, precision: Precision) -> ImageOutputs:
    """Run a model over the validation images, or over so many of them as pictures are made of."""
    places = sampled_places(len(batches.parts[Part.VALIDATION]))
    recorder = SampleRecorder(places)
    evaluate(model, _images_at(places, batches), precision, recorders=[recorder])
    return recorder.gather(SingleProcess())


def complete(thumbnails: Thumbnails, batches: ImageBatches) -> None:
    """Make the thumbnails that are missing, by a pass over these images."""
    missing = thumbnails.missing
    if not missing:
        return
    for batch in progress(_images_at(torch.tensor(missing), batches), desc="pictures", unit="batch"):
        thumbnails.add_images(batch)


def _images_at(places: Tensor, batches: ImageBatches) -> Pass:
    indices = [few.tolist() for few in places.split(batches.in_order_size)]
    return replace(batches.in_order(Part.VALIDATION), indices=indices)


def validation_snapshot(task: Task, outputs: ImageOutputs) -> ValidationSnapshot:
    """What is shown of a model's outputs."""
    return ValidationSnapshot(
        indices=outputs.indices.tolist(),
        targets=outputs.targets > 0.5,
        given=task.given(outputs.logits),
        probabilities=task.probabilities(outputs.logits),
        losses=task.losses(outputs.logits, outputs.targets),
        vectors=outputs.vectors,
    )


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
