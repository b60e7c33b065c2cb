"""Figures of an evaluation: scores by class and the reliability diagram."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from sat_vg.backbone_finetuning.reports.figures import add_grid, plain

_MAX_CLASSES = 60  # more bars than this cannot be read on one figure
_SCORES = {"precision": "#9ec1de", "recall": "#5b94c4", "f1": "#1f4e79"}
_CONFIDENCE = _AVERAGE_PRECISION = "#d2691e"
_NAMES = {"f1": "F1", "average_precision": "average precision"}


@dataclass(frozen=True)
class Terms:
    """The words of a reliability diagram."""

    confidence: str  # the predicted probability
    accuracy: str  # the share of the predictions that are correct
    counted: str  # the predictions, in the plural
    each: str  # one of them


TERMS = {  # by task
    "single_label": Terms("confidence", "accuracy", "images", "image"),
    "multi_label": Terms("probability", "share that has the class", "pairs", "pair of an image and a class"),
}


def draw_class_scores(class_names: Sequence[str], rows: Sequence[Mapping[str, float]]) -> Figure:
    """Bars of precision, recall and F1 by class, the worst F1 on top; of many classes the worst 60.

    ``rows`` are those of ``Validation.rows``; classes without images are left out.
    """
    present = sorted((index for index, row in enumerate(rows) if row["images"]), key=lambda i: rows[i]["f1"])
    shown = present[:_MAX_CLASSES]
    has_average_precision = any("average_precision" in row for row in rows)
    colours = {**_SCORES, "average_precision": _AVERAGE_PRECISION} if has_average_precision else _SCORES
    step = 0.81 / len(colours)  # of a row's height; the rest is a gap
    figure = Figure(figsize=(8, 1.4 + 0.34 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    for number, (score, colour) in enumerate(colours.items()):
        widths = [100 * rows[index][score] for index in shown]
        places = np.arange(len(shown)) + step * (number - (len(colours) - 1) / 2)
        axes.barh(places, widths, step - 0.02, color=colour, label=_NAMES.get(score, score))
    axes.set_yticks(range(len(shown)), [f"{plain(class_names[i])} ({rows[i]['images']:.0f})" for i in shown])
    axes.invert_yaxis()
    axes.set(xlim=(0, 100), xlabel="%", ylim=(len(shown) - 0.4, -0.6))
    more = f" (the worst {len(shown)} of {len(present)})" if len(present) > len(shown) else ""
    axes.set_title(f"scores by class (number of images){more}", fontsize=10)
    add_grid(axes, "x")
    figure.legend(loc="outside lower center", ncols=len(colours), frameon=False, fontsize=8)
    return figure


def draw_reliability(bins: Sequence[Mapping[str, float]], error: float, terms: Terms) -> Figure:
    """A reliability diagram (Guo et al., 2017) over the number of images by confidence.

    ``bins`` are those of ``evaluation.calibration.reliability``; ``error`` is the expected calibration error.
    """
    figure = Figure(figsize=(5, 5.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    filled = [row for row in bins if row["images"]]
    middles = [50 * (row["low"] + row["high"]) for row in filled]
    width = 100 / len(bins) - 0.8
    accuracy, confidence = (np.array([100 * row[name] for row in filled]) for name in ("accuracy", "confidence"))
    upper.bar(middles, accuracy, width, color=_SCORES["recall"], label=terms.accuracy)
    upper.plot((0, 100), (0, 100), color="0.4", linewidth=1, linestyle="--", label="calibrated", zorder=1)
    ends = [middle - width / 2 for middle in middles], [middle + width / 2 for middle in middles]
    upper.hlines(confidence, *ends, color=_CONFIDENCE, linewidth=2.5, label=f"mean {terms.confidence}")
    upper.set(xlim=(0, 100), ylim=(0, 100), ylabel=f"{terms.accuracy}, %")
    upper.set_title(f"expected calibration error {100 * error:.2f} %", fontsize=10)
    upper.legend(loc="upper left", fontsize=8)
    lower.bar(middles, [row["images"] for row in filled], width, color=_SCORES["f1"])
    lower.set(xlabel=f"{terms.confidence}, %", ylabel=terms.counted)
    for axes in (upper, lower):
        add_grid(axes)
    return figure
