"""Evaluation where an image has one class: loss, numbers, mistakes and tables, for ``tasks.TASKS``."""

from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import Tensor
from torch.nn import functional

from sat_vg.backbone_finetuning.evaluation.bootstrap import bootstrap_intervals
from sat_vg.backbone_finetuning.evaluation.metrics import Validation, averages, share_of_true_class
from sat_vg.backbone_finetuning.evaluation.mistakes import most_confident_mistakes
from sat_vg.backbone_finetuning.evaluation.predictions import (
    MISTAKES_SHOWN,
    Mistake,
    Predictions,
    assessment,
    names_of_set,
)
from sat_vg.backbone_finetuning.reports.prediction_table import Prediction
from sat_vg.backbone_finetuning.reports.record_pictures import draw_confusion

_TOP = 5
MISTAKES_HEADING = (
    "the best model's most confident mistakes, of {} validation images\n"
    "true class → predicted class, with its probability"
)


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy, summed over the batch."""
    return functional.cross_entropy(logits.float(), targets, reduction="sum")


def losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each image."""
    return functional.cross_entropy(logits, targets.argmax(1), reduction="none")


def draw(validation: Validation, class_names: Sequence[str]) -> Image.Image:
    """The confusion matrix."""
    assert validation.confusion is not None
    return draw_confusion(validation.confusion.numpy(), class_names)


def assess(predictions: Predictions, class_names: Sequence[str], temperature: float) -> dict[str, Any]:
    """Scores, intervals, calibration and confusion matrices.

    Args:
        predictions: of all images.
        class_names: of the model.
        temperature: of the probabilities; accuracy and loss do not depend on it.

    Returns:
        Shares of 1, counts, and lists, by name; matrices have true classes as rows. ``top_5_accuracy`` is there where
        the model has more than 5 classes.
    """
    predicted, labels, num_classes = predictions.predicted, predictions.labels, len(class_names)
    validation, means = predictions.validation, averages(predictions.validation.rows())
    confidences = predictions.probabilities(temperature).amax(1)
    assert validation.confusion is not None
    confusion = validation.confusion.tolist()
    top_5 = {"top_5_accuracy": _share_among(predictions.ranked(_TOP), labels)} if num_classes > _TOP else {}
    content = assessment(
        predictions,
        class_names,
        temperature,
        calibrated=lambda t: (predictions.probabilities(t).amax(1), predicted == labels),
        scores={**top_5, "loss": validation.loss, "macro_f1": means["macro"]["f1"]},
        intervals=bootstrap_intervals(predicted, labels, confidences, num_classes),
        means=means,
    )
    return {**content, "confusion": confusion, "confusion_normalised": share_of_true_class(confusion)}


def _share_among(ranked: Tensor, labels: Tensor) -> float:
    """How many of ``labels [N]`` are among ``ranked [N, k]``."""
    return int((ranked == labels[:, None]).any(1).sum()) / len(labels)


def per_image(predictions: Predictions, paths: Sequence[str], temperature: float) -> list[Prediction]:
    """Each image with its class and the most likely ones: the lines of predictions.csv."""
    classes = predictions.ranked(min(_TOP, predictions.logits.shape[1]))
    shares = predictions.probabilities(temperature).gather(1, classes)
    columns = (predictions.labels.tolist(), classes.tolist(), shares.tolist())
    return [Prediction(*row) for row in zip(paths, *columns, strict=True)]


def mistakes(
    predictions: Predictions, lines: Sequence[Prediction], class_names: Sequence[str], temperature: float
) -> list[Mistake]:
    """The most confident mistakes."""
    confidences = predictions.probabilities(temperature).amax(1)
    hits = predictions.predicted == predictions.labels
    return [
        Mistake(place, lines[place].classes[0], lines[place].named(class_names))
        for place in most_confident_mistakes(confidences, hits, MISTAKES_SHOWN)
    ]


def mistake_title(targets: Tensor, given: Tensor, probabilities: Tensor, class_names: Sequence[str]) -> str:
    """True class, predicted class and its probability; rows ``[num_classes]``."""
    true, predicted = names_of_set(targets, class_names), names_of_set(given, class_names)
    return f"{true}\n→ {predicted}\n{100 * float(probabilities.max()):.1f} %"
