"""Evaluation where an image can have several classes: loss, numbers, mistakes and tables, for ``tasks.TASKS``."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from sat_vg.backbone_finetuning.evaluation.bootstrap import bootstrap_intervals_of_sets
from sat_vg.backbone_finetuning.evaluation.metrics import SCORES, Validation, mean_of_known
from sat_vg.backbone_finetuning.evaluation.mistakes import most_confident_mistakes
from sat_vg.backbone_finetuning.evaluation.predictions import MISTAKES_SHOWN, Mistake, Predictions, assessment
from sat_vg.backbone_finetuning.reports.prediction_table import SetPrediction
from sat_vg.backbone_finetuning.utils.printable import one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WRONG_CLASSES = 3  # named over an image
MISTAKES_HEADING = (
    "the best model's worst mistakes, of {} validation images\n"
    "it lacks a class that is there, or adds one that is not, of this probability"
)


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over the classes of binary cross-entropy, summed over the batch."""
    total = functional.binary_cross_entropy_with_logits(logits.float(), targets, reduction="sum")
    return total / targets.shape[1]


def losses(logits: Tensor, targets: Tensor) -> Tensor:
    """The same of each image."""
    return functional.binary_cross_entropy_with_logits(logits, targets.float(), reduction="none").mean(1)


def draw(validation: Validation, class_names: Sequence[str]) -> "Figure":
    """The scores by class."""
    from sat_vg.backbone_finetuning.reports.evaluation_figures import draw_class_scores  # and matplotlib: only here

    return draw_class_scores(class_names, validation.rows())


def assess(predictions: Predictions, class_names: Sequence[str], temperature: float) -> dict[str, Any]:
    """Scores, intervals and calibration.

    Args:
        predictions: of all images.
        class_names: of the model.
        temperature: of the probabilities; all but the calibration does not depend on it.

    Returns:
        Shares of 1 and counts, by name. ``accuracy``: of the images all of whose classes are right; ``map``: mean of
        the classes' average precisions; averages are over classes that have images (macro), or over all pairs of an
        image and a class (micro). Calibration is that of all these pairs: how many of those with a like probability
        have the class.
    """
    validation, numbers = predictions.validation, predictions.validation.numbers()
    present = [row for row in validation.rows() if row["images"]]
    hits, given, images = validation.counts.sum(1).tolist()
    return assessment(
        predictions,
        class_names,
        temperature,
        calibrated=lambda t: (predictions.probabilities(t).flatten(), predictions.labels.flatten()),
        scores={
            "loss": validation.loss,
            "map": numbers["val_map"],
            "macro_f1": numbers["macro_f1"],
            "micro_f1": numbers["micro_f1"],
        },
        intervals=bootstrap_intervals_of_sets(predictions.logits, predictions.given, predictions.labels),
        means={
            "macro": {name: mean_of_known([row[name] for row in present]) for name in (*SCORES, "average_precision")},
            "micro": {"precision": hits / max(given, 1), "recall": hits / max(images, 1), "f1": numbers["micro_f1"]},
        },
    )


def per_image(predictions: Predictions, paths: Sequence[str], temperature: float) -> list[SetPrediction]:
    """Each image with its classes, those that it is given, and all probabilities: the lines of predictions.csv."""
    columns = (
        predictions.labels.tolist(),
        predictions.given.tolist(),
        predictions.probabilities(temperature).tolist(),
        predictions.losses.tolist(),
    )
    return [SetPrediction(*row) for row in zip(paths, *columns, strict=True)]


def mistakes(
    predictions: Predictions, lines: Sequence[SetPrediction], class_names: Sequence[str], temperature: float
) -> list[Mistake]:
    """The images with the largest loss; of each the class with the most wrong probability is explained."""
    hits = (predictions.given == predictions.labels).all(1)
    found = []
    for place in most_confident_mistakes(predictions.losses, hits, MISTAKES_SHOWN):
        distance = (predictions.probabilities()[place] - predictions.labels[place].double()).abs()
        explained = int(torch.where(predictions.given[place] != predictions.labels[place], distance, -1.0).argmax())
        entry = {**lines[place].named(class_names), "explained": class_names[explained]}
        found.append(Mistake(place, explained, entry))
    return found


def mistake_title(targets: Tensor, given: Tensor, probabilities: Tensor, class_names: Sequence[str]) -> str:
    """A line for each of the worst wrong classes; rows ``[num_classes]``."""
    wrong = (given != targets).nonzero()[:, 0]
    wrong = wrong[(probabilities[wrong] - targets[wrong].float()).abs().argsort(descending=True, stable=True)]
    lines = [
        f"{'lacks' if targets[index] else 'adds'} {one_line(class_names[index])} {100 * probabilities[index]:.0f} %"
        for index in wrong[:_WRONG_CLASSES].tolist()
    ]
    more = len(wrong) - _WRONG_CLASSES
    return "\n".join([*lines, f"and {more} more"] if more > 0 else lines)
