"""What an evaluation says where an image has one class, and where it can have several: numbers, tables, mistakes."""

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
from sat_vg.backbone_finetuning.reports.prediction_table import (
    Prediction,
    SetPrediction,
    predictions_csv,
    set_predictions_csv,
)
from sat_vg.backbone_finetuning.reports.tables import text_table
from sat_vg.backbone_finetuning.utils.printable import one_line

_MISTAKES_SHOWN = 12
_TOP = 5
_SCORES = ("precision", "recall", "f1")


@dataclass(frozen=True)
class Mistaken:
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
class Kind:
    """What an evaluation says.

    Attributes:
        fit: ``(logits, labels) ->`` the temperature that fits them best.
        assess: ``(predictions, model) ->`` all numbers, by name.
        mistakes: ``(predictions, paths, model) ->`` the worst ones.
        table: content of evaluation.json → the summary for the terminal.
        csv: ``(predictions, paths, model) ->`` the text of predictions.csv.
    """

    fit: Callable[[Tensor, Tensor], float]
    assess: Callable[[Predictions, FineTuneModel], dict[str, Any]]
    mistakes: Callable[[Predictions, Sequence[str], FineTuneModel], list[Mistaken]]
    table: Callable[[dict[str, Any]], str]
    csv: Callable[[Predictions, Sequence[str], FineTuneModel], str]


def _ranked(predictions: Predictions, paths: Sequence[str], model: FineTuneModel) -> list[Prediction]:
    """Each image with its class and the most likely ones."""
    classes = predictions.ranked(min(_TOP, model.num_classes))
    shares = predictions.probabilities(model.temperature).gather(1, classes)
    columns = (predictions.labels.tolist(), classes.tolist(), shares.tolist())
    return [Prediction(*row) for row in zip(paths, *columns, strict=True)]


def _confident_mistakes(predictions: Predictions, paths: Sequence[str], model: FineTuneModel) -> list[Mistaken]:
    confidences = predictions.probabilities(model.temperature).amax(1)
    hits = predictions.predicted == predictions.labels
    ranked = _ranked(predictions, paths, model)
    return [
        Mistaken(place, ranked[place].classes[0], ranked[place].named(model.class_names))
        for place in most_confident_mistakes(confidences, hits, _MISTAKES_SHOWN)
    ]


def _table_of_classes(content: dict[str, Any]) -> str:
    rows: list[tuple[object, ...]] = [
        (one_line(name), *(f"{100 * row[key]:.1f}" for key in _SCORES), row["images"])
        for name, row in content["classes"].items()
    ]
    rows += [
        (f"({name} average)", *(f"{100 * row[key]:.1f}" for key in _SCORES), content["images"])
        for name, row in content["averages"].items()
    ]
    table = text_table(("class", "precision %", "recall %", "F1 %", "images"), rows)
    calibration = content["calibration"]
    accuracy, macro_f1, ece = _with_intervals(content, ("accuracy", "macro_f1", "ece"))
    top_5 = f", top 5 {100 * content['top_5_accuracy']:.2f} %" if "top_5_accuracy" in content else ""
    lines = [
        f"{content['split']}: accuracy {accuracy} of {content['images']} images{top_5}",
        f"macro F1 {macro_f1}, loss {content['loss']:.4f}",
        f"calibration error {ece} at temperature {calibration['temperature']:.3f}",
        *_without_temperature(calibration),
        _in_brackets(content),
    ]
    return "\n".join([table, "", *lines])


def _without_temperature(calibration: dict[str, Any]) -> list[str]:
    if calibration["temperature"] == 1:
        return []
    return [f"without the temperature: calibration error {100 * calibration['uncalibrated_ece']:.2f} %"]


def _with_intervals(content: dict[str, Any], names: Sequence[str]) -> list[str]:
    intervals = content["intervals"]
    return [
        f"{100 * content[name]:.2f} % ({' to '.join(f'{100 * end:.2f}' for end in intervals[name])})"
        for name in names
    ]


def _in_brackets(content: dict[str, Any]) -> str:
    intervals = content["intervals"]
    return f"in brackets: {100 * intervals['level']:.0f} % intervals of {intervals['resamples']} bootstrap resamples"


def _sets(predictions: Predictions, paths: Sequence[str], model: FineTuneModel) -> list[SetPrediction]:
    """Each image with its classes, those that it is given, and all probabilities."""
    columns = (
        predictions.labels.tolist(),
        predictions.given.tolist(),
        predictions.probabilities(model.temperature).tolist(),
        predictions.losses.tolist(),
    )
    return [SetPrediction(*row) for row in zip(paths, *columns, strict=True)]


def _worst_mistakes(predictions: Predictions, paths: Sequence[str], model: FineTuneModel) -> list[Mistaken]:
    hits = (predictions.given == predictions.labels).all(1)
    sets = _sets(predictions, paths, model)
    found = []
    for place in most_confident_mistakes(predictions.losses, hits, _MISTAKES_SHOWN):
        entry = sets[place].named(model.class_names)
        distance = (predictions.probabilities()[place] - predictions.labels[place].double()).abs()
        explained = int(torch.where(predictions.given[place] != predictions.labels[place], distance, -1.0).argmax())
        found.append(Mistaken(place, explained, {**entry, "explained": model.class_names[explained]}))
    return found


def _table_of_sets(content: dict[str, Any]) -> str:
    scores = ("average_precision", *_SCORES)

    def cells(row: dict[str, float]) -> list[str]:
        return [f"{100 * row[key]:.1f}" if key in row else "" for key in scores]

    rows: list[tuple[object, ...]] = [
        (one_line(name), *cells(row), row["images"]) for name, row in content["classes"].items()
    ]
    rows += [(f"({name} average)", *cells(row), content["images"]) for name, row in content["averages"].items()]
    header = ("class", "average precision %", "precision %", "recall %", "F1 %", "images")
    mean, accuracy, macro_f1, micro_f1 = _with_intervals(content, ("map", "accuracy", "macro_f1", "micro_f1"))
    lines = [
        f"{content['split']}: mAP {mean} on {content['images']} images",
        f"macro F1 {macro_f1}, micro F1 {micro_f1}",
        f"all classes right {accuracy}, loss {content['loss']:.4f}",
        f"calibration error {100 * content['ece']:.2f} % over all images and classes at temperature "
        f"{content['calibration']['temperature']:.3f}",
        *_without_temperature(content["calibration"]),
        _in_brackets(content),
    ]
    return "\n".join([text_table(header, rows), "", *lines])


KINDS: dict[TaskName, Kind] = {
    "single_label": Kind(
        fit_temperature,
        lambda predictions, model: assess(predictions, model.class_names, model.temperature),
        _confident_mistakes,
        _table_of_classes,
        lambda *what: predictions_csv(_ranked(*what), what[2].class_names),
    ),
    "multi_label": Kind(
        fit_temperature_of_sets,
        lambda predictions, model: assess_sets(predictions, model.class_names, model.temperature),
        _worst_mistakes,
        _table_of_sets,
        lambda *what: set_predictions_csv(_sets(*what), what[2].class_names),
    ),
}
