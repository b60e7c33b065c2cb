"""All numbers of an evaluation, from a model's predictions: plain data for files, tables and pages."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sat_vg.backbone_finetuning.engine.bootstrap import LEVEL, RESAMPLES, bootstrap_intervals
from sat_vg.backbone_finetuning.engine.calibration import (
    expected_calibration_error,
    negative_log_likelihood,
    reliability,
)
from sat_vg.backbone_finetuning.engine.classification_metrics import (
    averages,
    class_scores,
    share_of_true_class,
)
from sat_vg.backbone_finetuning.engine.predictions import Predictions

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
    confusion = predictions.validation.confusion.tolist()
    top_5 = {"top_5_accuracy": _share_among(predictions.ranked(_TOP), labels)} if num_classes > _TOP else {}
    return {
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


def _share_among(ranked: Tensor, labels: Tensor) -> float:
    """How many of ``labels [N]`` are among ``ranked [N, k]``. Not torchmetrics', which breaks ties in its own way."""
    return int((ranked == labels[:, None]).any(1).sum()) / len(labels)
