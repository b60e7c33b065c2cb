"""What the evaluations of all tasks share."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from sat_vg.backbone_finetuning.evaluation.bootstrap import LEVEL, RESAMPLES
from sat_vg.backbone_finetuning.evaluation.calibration import (
    expected_calibration_error,
    negative_log_likelihood,
    reliability,
)
from sat_vg.backbone_finetuning.evaluation.predictions import Predictions
from sat_vg.backbone_finetuning.utils.printable import one_line

MISTAKES_SHOWN = 12


def assessment(
    predictions: Predictions,
    class_names: Sequence[str],
    temperature: float,
    calibrated: Callable[[float], tuple[Tensor, Tensor]],
    scores: dict[str, float],
    intervals: dict[str, list[float]],
    means: dict[str, dict[str, float]],
) -> dict[str, Any]:
    """Scores, intervals, averages, scores by class and calibration, as evaluation.json has them.

    Args:
        predictions: of all images.
        class_names: of the model.
        temperature: of the probabilities.
        calibrated: temperature → the predictions that calibration is measured on: probabilities and hits.
        scores: beside accuracy.
        intervals: of scores.
        means: of the scores by class.
    """
    bins, before = (reliability(*calibrated(t)) for t in (temperature, 1.0))
    return {
        "task": predictions.task,
        "images": len(predictions.labels),
        "accuracy": predictions.validation.accuracy,
        **scores,
        "ece": expected_calibration_error(bins),
        "intervals": {"level": LEVEL, "resamples": RESAMPLES, **intervals},
        "averages": means,
        "classes": dict(zip(class_names, predictions.validation.rows(), strict=True)),
        "calibration": {
            "temperature": temperature,
            "nll": negative_log_likelihood(predictions.logits, predictions.labels, temperature),
            "bins": bins,
            "uncalibrated_ece": expected_calibration_error(before),
            "uncalibrated_nll": negative_log_likelihood(predictions.logits, predictions.labels),
        },
    }


def names_of_set(row: Tensor, class_names: Sequence[str]) -> str:
    """The names of the classes that are set in ``row`` (bool ``[num_classes]``), with commas between."""
    return ", ".join(one_line(class_names[index]) for index in row.nonzero()[:, 0].tolist()) or "(none)"
