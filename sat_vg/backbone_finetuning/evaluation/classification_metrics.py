"""Scores of a classifier by class and on average; torchmetrics counts, and each score is divided once, in Python."""

from collections.abc import Mapping, Sequence

from torch import Tensor
from torchmetrics.functional.classification import multiclass_stat_scores

SCORES = ("precision", "recall", "f1")


def class_scores(predicted: Tensor, labels: Tensor, num_classes: int) -> list[dict[str, float]]:
    """Precision, recall and F1 of each class, and its number of images.

    Args:
        predicted: int64 ``[N]``.
        labels: int64 ``[N]``.
        num_classes: of the model; some may have no images.

    Returns:
        By class: ``precision``, ``recall``, ``f1`` (shares; 0 where there is nothing to divide by) and ``images``.
    """
    counts = multiclass_stat_scores(predicted, labels, num_classes, average=None)
    return [
        {
            "precision": hits / max(hits + wrongly, 1),
            "recall": hits / max(images, 1),
            "f1": 2 * hits / max(hits + wrongly + images, 1),
            "images": images,
        }
        for hits, wrongly, _, _, images in counts.tolist()
    ]


def averages(rows: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """The means of ``class_scores`` over the classes that have images.

    Returns:
        ``macro``, in which each class counts the same, and ``weighted``, in which each image does.
    """
    present = [row for row in rows if row["images"]]
    total = sum(row["images"] for row in present)
    return {
        "macro": {score: sum(row[score] for row in present) / len(present) for score in SCORES},
        "weighted": {score: sum(row["images"] * row[score] for row in present) / total for score in SCORES},
    }


def share_of_true_class(confusion: Sequence[Sequence[int]]) -> list[list[float]]:
    """A confusion matrix whose rows sum to 1; rows of classes without images are zeros."""
    return [[count / max(sum(row), 1) for count in row] for row in confusion]
