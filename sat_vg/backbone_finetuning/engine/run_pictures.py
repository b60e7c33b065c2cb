"""What TensorBoard gets of the best model once, at the end of a run: curves, mistakes, and its view of the images."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from sat_vg.backbone_finetuning.data.loaders import ImageBatches
from sat_vg.backbone_finetuning.data.sampling import Part
from sat_vg.backbone_finetuning.engine.epoch_curves import MOST_CLASSES, chart_names
from sat_vg.backbone_finetuning.engine.feeds import image_values
from sat_vg.backbone_finetuning.engine.mistakes import most_confident_mistakes
from sat_vg.backbone_finetuning.engine.precision import Precision
from sat_vg.backbone_finetuning.engine.tracking import Tracker
from sat_vg.backbone_finetuning.engine.training import Training
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.reports.figures import draw_image_grid
from sat_vg.backbone_finetuning.reports.projector import Embedding, principal_components
from sat_vg.backbone_finetuning.utils.printable import one_line

MOST_IMAGES = 1000
_MISTAKES, _DIRECTIONS, _THUMBNAIL = 12, 64, 48  # images, principal components, pixels


@dataclass(frozen=True)
class Look:
    """What a model says of some validation images, on the CPU.

    Attributes:
        indices: N places in the split.
        labels: int64 ``[N]``.
        probabilities: float32 ``[N, num_classes]``.
        vectors: float32 ``[N, D]``, what the classifier sees.
        thumbnails: uint8 ``[N, 3, S, S]``.
    """

    indices: list[int]
    labels: Tensor
    probabilities: Tensor
    vectors: Tensor
    thumbnails: Tensor


def show_best_model(training: Training, best_model: Path, tracker: Tracker, step: int) -> None:
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
    look = look_over(model, training.feeds.batches, training.precision)
    show_precision_recall(model, look, tracker, step)
    show_mistakes(model, look, training.feeds.batches, tracker, step)
    names, predicted = model.class_names, look.probabilities.argmax(1).tolist()
    columns = {
        "class": [names[label] for label in look.labels.tolist()],
        "predicted": [names[label] for label in predicted],
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
    parts: list[tuple[Tensor, ...]] = []
    for batch in tqdm(images, desc="pictures", unit="batch", leave=False, disable=None):
        small = functional.interpolate(batch.images.float(), size=_THUMBNAIL, mode="area").round().to(torch.uint8)
        batch = batch.to(precision.device)
        with precision.autocast():
            vectors = model.forward_pooled(image_values(model, precision, batch))
            logits = model.forward_head(vectors)
        parts.append((batch.targets.argmax(1), logits.float().softmax(1), vectors.float(), small))
    labels, probabilities, vectors, thumbnails = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
    return Look([index for few in images.indices for index in few], labels, probabilities, vectors, thumbnails)


def show_precision_recall(model: FineTuneModel, look: Look, tracker: Tracker, step: int) -> None:
    """Show a curve of all classes together, and one of each class that has images, unless there are very many."""
    is_class = functional.one_hot(look.labels, model.num_classes).bool().numpy()
    shares = look.probabilities.numpy()
    tracker.precision_recall("precision_recall/all classes", is_class.ravel(), shares.ravel(), step)
    if model.num_classes > MOST_CLASSES:
        return
    for label, name in enumerate(chart_names(model.class_names)):
        if is_class[:, label].any():
            tracker.precision_recall(f"precision_recall_by_class/{name}", is_class[:, label], shares[:, label], step)


def show_mistakes(model: FineTuneModel, look: Look, batches: ImageBatches, tracker: Tracker, step: int) -> None:
    """Draw the images that are given to a wrong class with the most confidence; where none is, nothing."""
    confidences, predicted = look.probabilities.max(1)
    hits = predicted == look.labels
    wrong = most_confident_mistakes(confidences, hits, _MISTAKES)
    if not wrong:
        return
    dataset, titles = batches.parts[Part.VALIDATION], []
    images = torch.stack([dataset[0, look.indices[place]][0] for place in wrong]).permute(0, 2, 3, 1).numpy()
    for place in wrong:
        true, given = (one_line(model.class_names[int(labels[place])]) for labels in (look.labels, predicted))
        titles.append(f"{true}\n→ {given}\n{100 * float(confidences[place]):.1f} %")
    heading = (
        f"the best model's most confident mistakes, of {int((~hits).sum())} in {len(hits)} validation images\n"
        "true class → predicted class, with its probability"
    )
    tracker.figure("mistakes", draw_image_grid(images, titles, heading), step)
