"""The files of an evaluation: report.html, evaluation.json, predictions.csv and pictures."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sat_vg.backbone_finetuning.engine.mistakes import Views
from sat_vg.backbone_finetuning.engine.tracking import METRICS
from sat_vg.backbone_finetuning.models.probabilities import TaskName
from sat_vg.backbone_finetuning.reports.evaluation_figures import draw_class_scores, draw_reliability
from sat_vg.backbone_finetuning.reports.figures import draw_confusion_matrix
from sat_vg.backbone_finetuning.reports.html_report import Mistake, Report, render_report
from sat_vg.backbone_finetuning.reports.sets_report import SetMistake, render_sets_report
from sat_vg.backbone_finetuning.reports.svg_charts import OF_PAIRS
from sat_vg.backbone_finetuning.utils.errors import ConfigError, WriteError
from sat_vg.backbone_finetuning.utils.home_paths import expand_home
from sat_vg.backbone_finetuning.utils.safe_files import atomic_write, write_text
from sat_vg.backbone_finetuning.utils.terminal import say

_MOST_BYTES = 64 * 2**20  # of a metrics.jsonl; hundreds of thousands of lines
_CURVES, _MAYBE = ("epoch", "train_loss", "val_loss", "val_accuracy"), ("val_map",)


def write_results(
    folder: Path,
    content: dict[str, Any],
    predictions: str,
    views: Sequence[Views],
    curves: tuple[list[dict[str, float]], str],
) -> None:
    """Write all files of an evaluation, each whole or not at all.

    Args:
        folder: made if need be.
        content: of evaluation.json.
        predictions: the text of predictions.csv.
        views: of the mistakes that ``content`` lists.
        curves: the epochs of the training, and where there are none, why.

    Raises:
        WriteError: the folder cannot be written to or the disk is full.
    """
    look = _LOOKS[content["task"]]
    pictures = look.draw(content)
    mistakes = [
        look.mistake(**entry, image=view.image, grad_cam=view.grad_cam, attention=view.attention)
        for entry, view in zip(content["mistakes"], views, strict=True)
    ]
    page = look.render(Report(content, mistakes, *curves))
    try:
        for name, figure in pictures.items():
            _save_figure(folder / name, figure)
        write_text(folder / "evaluation.json", json.dumps(content, indent=1) + "\n")
        write_text(folder / "predictions.csv", predictions)
        write_text(folder / "report.html", page)
    except OSError as error:
        raise WriteError(
            f"the results cannot be written to {str(folder)!r} ({error.strerror}); choose another --output_dir"
        ) from error
    say(f"written to {folder}: report.html, evaluation.json, predictions.csv, {', '.join(pictures)}")


def _draw_classes(content: Mapping[str, Any]) -> dict[str, Figure]:
    names, confusion = list(content["classes"]), np.array(content["confusion"])
    return {
        "confusion_matrix.png": draw_confusion_matrix(confusion, names, f"images of {content['split']}"),
        **_draw_scores(content),
        "reliability.png": draw_reliability(content["calibration"]["bins"], content["ece"]),
    }


def _draw_sets(content: Mapping[str, Any]) -> dict[str, Figure]:
    bins = content["calibration"]["bins"]
    return {**_draw_scores(content), "reliability.png": draw_reliability(bins, content["ece"], OF_PAIRS)}


def _draw_scores(content: Mapping[str, Any]) -> dict[str, Figure]:
    return {"class_scores.png": draw_class_scores(list(content["classes"]), list(content["classes"].values()))}


@dataclass(frozen=True)
class _Look:
    """How an evaluation is shown: its pictures by file name, what the page holds of a mistake, and the page."""

    draw: Callable[[Mapping[str, Any]], dict[str, Figure]]
    mistake: Callable[..., Mistake | SetMistake]
    render: Callable[[Report], str]


_LOOKS: dict[TaskName, _Look] = {
    "single_label": _Look(_draw_classes, Mistake, render_report),
    "multi_label": _Look(_draw_sets, SetMistake, render_sets_report),
}


def _save_figure(path: Path, figure: Figure) -> None:
    with atomic_write(path) as file:
        figure.savefig(file, dpi=110)


def epochs_of_run(training: Mapping[str, Any]) -> tuple[list[dict[str, float]], str]:
    """The epochs of the training that a checkpoint comes from, and where its log is not to be had, why.

    Args:
        training: ``config`` and ``metrics`` in the checkpoint; the config names the folder of the log, which may lie
            elsewhere by now.
    """
    log_dir, best = training["config"].get("log_dir"), training["metrics"]
    if not isinstance(log_dir, str) or "epoch" not in best:
        return [], "the checkpoint does not name the log of a training"
    try:
        path = expand_home(log_dir) / METRICS
        if not path.is_file() or path.stat().st_size > _MOST_BYTES:
            return [], f"there is no {path}"
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except (OSError, ValueError, ConfigError):
        return [], f"the log in {log_dir} cannot be read"
    epochs = [entry for entry in map(_epoch_of, lines) if entry is not None]
    if not any(all(entry[key] == best.get(key) for key in ("epoch", "val_loss", "val_accuracy")) for entry in epochs):
        return [], f"{path} is the log of another training"
    return epochs, ""


def _epoch_of(line: str) -> dict[str, float] | None:
    """What the curves need of a line that ends an epoch; None for other lines."""
    try:
        entry = json.loads(line)
        numbers = {key: entry[key] for key in (*_CURVES, *(key for key in _MAYBE if key in entry))}
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    is_sound = all(isinstance(value, (int, float)) and math.isfinite(value) for value in numbers.values())
    return numbers if is_sound else None
