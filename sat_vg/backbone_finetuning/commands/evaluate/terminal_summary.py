"""The summary of an evaluation for the terminal."""

from collections.abc import Sequence
from typing import Any

from sat_vg.backbone_finetuning.reports.tables import text_table
from sat_vg.backbone_finetuning.utils.printable import counted, one_line

_COLUMNS = {
    "average_precision": "average precision %",
    "precision": "precision %",
    "recall": "recall %",
    "f1": "F1 %",
}
_NAMES = {"accuracy": "accuracy", "map": "mAP"}


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
