"""Numbers, summary and mistakes of an evaluation, for one class an image and for several."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sat_vg.backbone_finetuning.evaluation.assessment import assess, assess_sets
from sat_vg.backbone_finetuning.evaluation.calibration import fit_temperature, fit_temperature_of_sets
from sat_vg.backbone_finetuning.evaluation.mistakes import most_confident_mistakes
from sat_vg.backbone_finetuning.evaluation.predictions import Predictions
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.models.probabilities import TaskName
from sat_vg.backbone_finetuning.reports.prediction_table import Prediction, SetPrediction
from sat_vg.backbone_finetuning.reports.tables import text_table
from sat_vg.backbone_finetuning.utils.printable import one_line

_MISTAKES_SHOWN = 12
_TOP = 5
_COLUMNS = {
    "average_precision": "average precision %",
    "precision": "precision %",
    "recall": "recall %",
    "f1": "F1 %",
}


@dataclass(frozen=True)
class Mistake:
    """An image that is shown as a mistake.

    Attributes:
        place: in the split.
        explained: index of the class whose heat is shown.
        entry: of evaluation.json.
    """

    place: int
    explained: int
    entry: dict[str, Any]


@dataclass(frozen=True)
class TaskResults:
    """What an evaluation does differently for one class an image and for several.

    Attributes:
        fit_temperature: ``(logits, labels) ->`` the temperature that fits them best.
        assess: ``(predictions, class names, temperature) ->`` all numbers, by name.
        per_image: ``(predictions, paths, model) ->`` the lines of predictions.csv.
        mistakes: ``(predictions, lines, model) ->`` the worst ones.
    """

    fit_temperature: Callable[[Tensor, Tensor], float]
    assess: Callable[[Predictions, Sequence[str], float], dict[str, Any]]
    per_image: Callable[[Predictions, Sequence[str], FineTuneModel], Sequence[Prediction | SetPrediction]]
    mistakes: Callable[[Predictions, Sequence[Any], FineTuneModel], list[Mistake]]


def _ranked(predictions: Predictions, paths: Sequence[str], model: FineTuneModel) -> list[Prediction]:
    """Each image with its class and the most likely ones."""
    classes = predictions.ranked(min(_TOP, model.num_classes))
    shares = predictions.probabilities(model.temperature).gather(1, classes)
    columns = (predictions.labels.tolist(), classes.tolist(), shares.tolist())
    return [Prediction(*row) for row in zip(paths, *columns, strict=True)]


def _confident_mistakes(
    predictions: Predictions, ranked: Sequence[Prediction], model: FineTuneModel
) -> list[Mistake]:
    confidences = predictions.probabilities(model.temperature).amax(1)
    hits = predictions.predicted == predictions.labels
    return [
        Mistake(place, ranked[place].classes[0], ranked[place].named(model.class_names))
        for place in most_confident_mistakes(confidences, hits, _MISTAKES_SHOWN)
    ]


def _sets(predictions: Predictions, paths: Sequence[str], model: FineTuneModel) -> list[SetPrediction]:
    """Each image with its classes, those that it is given, and all probabilities."""
    columns = (
        predictions.labels.tolist(),
        predictions.given.tolist(),
        predictions.probabilities(model.temperature).tolist(),
        predictions.losses.tolist(),
    )
    return [SetPrediction(*row) for row in zip(paths, *columns, strict=True)]


def _costly_mistakes(predictions: Predictions, sets: Sequence[SetPrediction], model: FineTuneModel) -> list[Mistake]:
    """The images with the largest loss; of each the class with the most wrong probability is explained."""
    hits = (predictions.given == predictions.labels).all(1)
    found = []
    for place in most_confident_mistakes(predictions.losses, hits, _MISTAKES_SHOWN):
        distance = (predictions.probabilities()[place] - predictions.labels[place].double()).abs()
        explained = int(torch.where(predictions.given[place] != predictions.labels[place], distance, -1.0).argmax())
        entry = {**sets[place].named(model.class_names), "explained": model.class_names[explained]}
        found.append(Mistake(place, explained, entry))
    return found


TASK_RESULTS: dict[TaskName, TaskResults] = {
    "single_label": TaskResults(fit_temperature, assess, _ranked, _confident_mistakes),
    "multi_label": TaskResults(fit_temperature_of_sets, assess_sets, _sets, _costly_mistakes),
}


def summary_of(content: dict[str, Any]) -> str:
    """The content of evaluation.json for the terminal: a table by class, and the numbers over all images."""
    is_multi_label = content["task"] == "multi_label"
    scores = [name for name in _COLUMNS if is_multi_label or name != "average_precision"]
    entries = [(one_line(name), row, row["images"]) for name, row in content["classes"].items()]
    entries += [(f"({name} average)", row, content["images"]) for name, row in content["averages"].items()]
    rows = [
        (name, *(f"{100 * row[score]:.1f}" if score in row else "" for score in scores), images)
        for name, row, images in entries
    ]
    table = text_table(("class", *(_COLUMNS[name] for name in scores), "images"), rows)
    lines = _multi_label_lines(content) if is_multi_label else _single_label_lines(content)
    calibration, intervals = content["calibration"], content["intervals"]
    if calibration["temperature"] != 1:
        lines.append(f"without the temperature: calibration error {100 * calibration['uncalibrated_ece']:.2f} %")
    lines.append(
        f"in brackets: {100 * intervals['level']:.0f} % intervals of {intervals['resamples']} bootstrap resamples"
    )
    return "\n".join([table, "", *lines])


def _single_label_lines(content: dict[str, Any]) -> list[str]:
    accuracy, macro_f1, ece = _with_intervals(content, ("accuracy", "macro_f1", "ece"))
    top_5 = f", top 5 {100 * content['top_5_accuracy']:.2f} %" if "top_5_accuracy" in content else ""
    return [
        f"{content['split']}: accuracy {accuracy} of {content['images']} images{top_5}",
        f"macro F1 {macro_f1}, loss {content['loss']:.4f}",
        f"calibration error {ece} at temperature {content['calibration']['temperature']:.3f}",
    ]


def _multi_label_lines(content: dict[str, Any]) -> list[str]:
    mean, accuracy, macro_f1, micro_f1 = _with_intervals(content, ("map", "accuracy", "macro_f1", "micro_f1"))
    return [
        f"{content['split']}: mAP {mean} on {content['images']} images",
        f"macro F1 {macro_f1}, micro F1 {micro_f1}",
        f"all classes right {accuracy}, loss {content['loss']:.4f}",
        f"calibration error {100 * content['ece']:.2f} % over all images and classes at temperature "
        f"{content['calibration']['temperature']:.3f}",
    ]


def _with_intervals(content: dict[str, Any], names: Sequence[str]) -> list[str]:
    intervals = content["intervals"]
    return [
        f"{100 * content[name]:.2f} % ({' to '.join(f'{100 * end:.2f}' for end in intervals[name])})"
        for name in names
    ]
