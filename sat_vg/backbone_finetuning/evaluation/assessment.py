"""All numbers of an evaluation, from a model's predictions: plain data for files, tables and pages."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sat_vg.backbone_finetuning.evaluation.bootstrap import (
    LEVEL,
    RESAMPLES,
    bootstrap_intervals,
    bootstrap_intervals_of_sets,
)
from sat_vg.backbone_finetuning.evaluation.calibration import (
    expected_calibration_error,
    negative_log_likelihood,
    negative_log_likelihood_of_sets,
    reliability,
)
from sat_vg.backbone_finetuning.evaluation.classification_metrics import (
    SCORES,
    averages,
    class_scores,
    share_of_true_class,
)
from sat_vg.backbone_finetuning.evaluation.metrics import mean_of_known
from sat_vg.backbone_finetuning.evaluation.predictions import Predictions

_TOP = 5


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
    confidences = predictions.probabilities(temperature).amax(1)
    rows = class_scores(predicted, labels, num_classes)
    means = averages(rows)
    bins = reliability(confidences, predicted == labels)
    before = reliability(predictions.probabilities().amax(1), predicted == labels)
    assert predictions.validation.confusion is not None
    confusion = predictions.validation.confusion.tolist()
    top_5 = {"top_5_accuracy": _share_among(predictions.ranked(_TOP), labels)} if num_classes > _TOP else {}
    return {
        "task": predictions.task,
        "images": len(labels),
        "accuracy": predictions.validation.accuracy,
        **top_5,
        "loss": predictions.validation.loss,
        "macro_f1": means["macro"]["f1"],
        "ece": expected_calibration_error(bins),
        "intervals": {
            "level": LEVEL,
            "resamples": RESAMPLES,
            **bootstrap_intervals(predicted, labels, confidences, num_classes),
        },
        "averages": means,
        "classes": dict(zip(class_names, rows, strict=True)),
        "calibration": {
            "temperature": temperature,
            "nll": negative_log_likelihood(predictions.logits, labels, temperature),
            "bins": bins,
            "uncalibrated_ece": expected_calibration_error(before),
            "uncalibrated_nll": negative_log_likelihood(predictions.logits, labels),
        },
        "confusion": confusion,
        "confusion_normalised": share_of_true_class(confusion),
    }


def assess_sets(predictions: Predictions, class_names: Sequence[str], temperature: float) -> dict[str, Any]:
    """The same where an image can have several classes: scores, intervals and calibration; no matrix.

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
    validation = predictions.validation
    pairs = predictions.labels.flatten()
    bins, before = (reliability(predictions.probabilities(t).flatten(), pairs) for t in (temperature, 1.0))
    numbers, rows = validation.numbers(), validation.rows()
    present = [row for row in rows if row["images"]]
    hits, given, images = validation.counts.sum(1).tolist()
    return {
        "task": predictions.task,
        "images": len(predictions.labels),
        "accuracy": validation.accuracy,
        "loss": validation.loss,
        "map": numbers["val_map"],
        "macro_f1": numbers["macro_f1"],
        "micro_f1": numbers["micro_f1"],
        "ece": expected_calibration_error(bins),
        "intervals": {
            "level": LEVEL,
            "resamples": RESAMPLES,
            **bootstrap_intervals_of_sets(predictions.logits, predictions.given, predictions.labels),
        },
        "averages": {
            "macro": {name: mean_of_known([row[name] for row in present]) for name in (*SCORES, "average_precision")},
            "micro": {
                "precision": hits / max(given, 1),
                "recall": hits / max(images, 1),
                "f1": numbers["micro_f1"],
            },
        },
        "classes": dict(zip(class_names, rows, strict=True)),
        "calibration": {
            "temperature": temperature,
            "nll": negative_log_likelihood_of_sets(predictions.logits, predictions.labels, temperature),
            "bins": bins,
            "uncalibrated_ece": expected_calibration_error(before),
            "uncalibrated_nll": negative_log_likelihood_of_sets(predictions.logits, predictions.labels),
        },
    }


def _share_among(ranked: Tensor, labels: Tensor) -> float:
    """How many of ``labels [N]`` are among ``ranked [N, k]``. Not torchmetrics', which breaks ties in its own way."""
    return int((ranked == labels[:, None]).any(1).sum()) / len(labels)
