"""The files of an evaluation: report.html, evaluation.json, predictions.csv and pictures."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from sat_vg.backbone_finetuning.commands.output_folder import explaining_writing
from sat_vg.backbone_finetuning.evaluation.mistakes import Views
from sat_vg.backbone_finetuning.reports.evaluation_figures import TERMS, draw_class_scores, draw_reliability
from sat_vg.backbone_finetuning.reports.evaluation_page import render_report
from sat_vg.backbone_finetuning.reports.record_pictures import draw_confusion
from sat_vg.backbone_finetuning.training.metric_lines import METRICS, read_metric_lines
from sat_vg.backbone_finetuning.utils.home_paths import expand_home
from sat_vg.backbone_finetuning.utils.safe_files import atomic_write, write_text
from sat_vg.backbone_finetuning.utils.terminal import say


def write_results(
    folder: Path,
    content: dict[str, Any],
    predictions: str,
    views: Sequence[Views],
    curves: tuple[list[dict[str, Any]], str],
) -> None:
    """Write all files of an evaluation, each whole or not at all.

    Args:
        folder: made if need be.
        content: of evaluation.json.
        predictions: the text of predictions.csv.
        views: of the mistakes that ``content`` lists.
        curves: epochs of the training, or the reason why there are none.

    Raises:
        WriteError: the folder cannot be written to or the disk is full.
    """
    figures = _draw(content)
    page = render_report(content, [_pictures_of(view) for view in views], *curves)
    with explaining_writing(f"the results cannot be written to {str(folder)!r}", "; choose another --out"):
        for name, figure in figures.items():
            _save_figure(folder / name, figure)
        write_text(folder / "evaluation.json", json.dumps(content, indent=1) + "\n")
        write_text(folder / "predictions.csv", predictions)
        write_text(folder / "report.html", page)
    say(f"written to {folder}: report.html, evaluation.json, predictions.csv, {', '.join(figures)}")


def _draw(content: Mapping[str, Any]) -> dict[str, Figure | Image.Image]:
    names, figures = list(content["classes"]), dict[str, Figure | Image.Image]()
    if "confusion" in content:
        confusion = np.array(content["confusion"])
        figures["confusion_matrix.png"] = draw_confusion(confusion, names, content["split"])
    figures["class_scores.png"] = draw_class_scores(names, list(content["classes"].values()))
    bins, terms = content["calibration"]["bins"], TERMS[content["task"]]
    return {**figures, "reliability.png": draw_reliability(bins, content["ece"], terms)}


def _pictures_of(views: Views) -> dict[str, np.ndarray]:
    pictures = {"image": views.image, "Grad-CAM": views.grad_cam}
    return pictures if views.attention is None else {**pictures, "attention": views.attention}


def _save_figure(path: Path, figure: Figure | Image.Image) -> None:
    with atomic_write(path) as file:
        if isinstance(figure, Figure):
            figure.savefig(file, dpi=110)
        else:
            figure.save(file, "PNG")


def epochs_of_run(training: Mapping[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """Epochs of the training that a checkpoint comes from, or the reason why there are none.

    Args:
        training: ``config`` and ``metrics`` in the checkpoint; the config names the folder of the log, which may lie
            elsewhere by now.
    """
    log_dir, best = training["config"].get("log_dir"), training["metrics"]
    if not isinstance(log_dir, str) or "epoch" not in best:
        return [], "the checkpoint does not name the log of a training"
    try:
        path = expand_home(log_dir) / METRICS
        if not path.is_file():
            return [], f"there is no {path}"
        epochs = read_metric_lines(path).ended_epochs
    except (OSError, ValueError):
        return [], f"the log in {log_dir} cannot be read"
    if not any(all(entry[key] == best.get(key) for key in ("epoch", "val_loss", "val_accuracy")) for entry in epochs):
        return [], f"{path} is the log of another training"
    return epochs, ""
