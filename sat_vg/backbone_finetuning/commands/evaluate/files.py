"""What an evaluation tells: the terminal's summary, report.html, evaluation.json, predictions.csv and pictures."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from sat_vg.backbone_finetuning.commands.output_folder import explaining_writing
from sat_vg.backbone_finetuning.reports.evaluation_figures import TERMS, draw_class_scores, draw_reliability
from sat_vg.backbone_finetuning.reports.evaluation_page import render_report
from sat_vg.backbone_finetuning.reports.record_pictures import draw_confusion
from sat_vg.backbone_finetuning.reports.tables import text_table
from sat_vg.backbone_finetuning.training.metric_lines import METRICS, read_metric_lines
from sat_vg.backbone_finetuning.utils.home_paths import expand_home
from sat_vg.backbone_finetuning.utils.printable import counted, one_line
from sat_vg.backbone_finetuning.utils.safe_files import atomic_write, write_text
from sat_vg.backbone_finetuning.utils.terminal import say

_COLUMNS = {
    "average_precision": "average precision %",
    "precision": "precision %",
    "recall": "recall %",
    "f1": "F1 %",
}
_NAMES = {"accuracy": "accuracy", "map": "mAP"}


def write_results(
    folder: Path,
    content: dict[str, Any],
    predictions: str,
    views: Sequence[Mapping[str, np.ndarray]],
    curves: tuple[list[dict[str, Any]], str],
) -> None:
    """Write all files of an evaluation, each whole or not at all. Raises WriteError where that fails.

    Args:
        folder: made if need be.
        content: of evaluation.json.
        predictions: the text of predictions.csv.
        views: of the mistakes that ``content`` lists, see ``look_at``.
        curves: epochs of the training, or the reason why there are none.
    """
    figures = _draw(content)
    page = render_report(content, views, *curves)
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


def _save_figure(path: Path, figure: Figure | Image.Image) -> None:
    with atomic_write(path) as file:
        if isinstance(figure, Figure):
            figure.savefig(file, dpi=110)
        else:
            figure.save(file, "PNG")


def epochs_of_run(training: Mapping[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """Epochs of the training that a checkpoint comes from, or the reason why there are none.

    ``config`` in ``training`` names the folder of the log, which may lie elsewhere by now.
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
    if "averaged" in content:
        lines.append(averaging_line(content))
    calibration, intervals = content["calibration"], content["intervals"]
    if calibration["temperature"] != 1:
        lines.append(f"without the temperature: calibration error {100 * calibration['uncalibrated_ece']:.2f} %")
    lines.append(
        f"in brackets: {100 * intervals['level']:.0f} % intervals of {intervals['resamples']} bootstrap resamples"
    )
    if content["accuracy"] == 1:  # every resample is all right, too
        most = 100 * (1 - (1 - intervals["level"]) ** (1 / content["images"]))
        lines.append(
            f"no image is wrong, so they say nothing of the accuracy: up to {most:.1f} % of such images may be"
        )
    return "\n".join([table, "", *lines])


def averaging_line(content: dict[str, Any]) -> str:
    """What the average over views and checkpoints brought and what it costs."""
    averaged, name = content["averaged"], "map" if "map" in content else "accuracy"
    alone, now = averaged["alone"], content["calibration"]["nll"]
    models = counted(len(averaged["checkpoints"]), "checkpoint")
    return (
        f"averaged over {counted(averaged['views'], 'view')} and {models}: {_NAMES[name]} {100 * alone[name]:.2f} -> "
        f"{100 * content[name]:.2f} %, log-loss {alone['nll']:.4f} -> {now:.4f}; cost: {averaged['passes']} passes "
        f"an image in place of 1, {alone['gflops']:.2f} -> {averaged['gflops']:.2f} GFLOPs"
    )


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
