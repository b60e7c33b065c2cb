"""The page of an evaluation where an image can have several classes or none: scores by class, and mistakes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sat_vg.backbone_finetuning.reports.html_report import (
    Report,
    as_cards,
    html_table,
    percent,
    picture_pair,
    render_calibration,
    render_page,
    shown,
)
from sat_vg.backbone_finetuning.reports.svg_charts import OF_PAIRS, bar

_SCORES = ("average_precision", "precision", "recall", "f1")
_HEAD = ("class", "AP %", "precision %", "recall %", "F1 %", "images")


@dataclass(frozen=True)
class SetMistake:
    """An image of which some classes are wrong; pictures are uint8 ``[H, W, 3]``.

    Attributes:
        path: of the image, relative to the data folder.
        true: its classes.
        predicted: those that it was given.
        missed: probabilities of the classes that it has and was not given, the worst first.
        added: probabilities of those that it was given and has not.
        loss: of the image.
        explained: the class that is most wrong.
        image: as the model saw it.
        grad_cam: under the heat of that class.
        attention: under the attention of the last block; None where there is none.
    """

    path: str
    true: Sequence[str]
    predicted: Sequence[str]
    missed: Mapping[str, float]
    added: Mapping[str, float]
    loss: float
    explained: str
    image: np.ndarray
    grad_cam: np.ndarray
    attention: np.ndarray | None = None


def render_sets_report(report: Report) -> str:
    """The page as HTML."""
    content = report.content
    sections = {
        "Classes": _classes(content),
        "Calibration": _calibration(content),
        "Mistakes": _mistakes(report.mistakes, content),
    }
    return render_page(report, _headline(content), sections)


def _headline(content: Mapping[str, Any]) -> str:
    intervals = content["intervals"]
    level = f"{100 * intervals['level']:.0f} %"
    titles = {"map": "mAP", "macro_f1": "Macro F1", "micro_f1": "Micro F1", "accuracy": "All classes right"}
    cards = [
        (
            title,
            f"{percent(content[name])}<small>%</small>",
            f"{level}: {percent(intervals[name][0], 1)} to {percent(intervals[name][1], 1)}",
        )
        for name, title in titles.items()
    ]
    cards.append(("Calibration error", f"{percent(content['ece'])}<small>%</small>", "all images and classes"))
    return as_cards([*cards, ("Loss", f"{content['loss']:.4f}", "binary cross-entropy, nats")])


def _classes(content: Mapping[str, Any]) -> str:
    def cells(row: Mapping[str, float]) -> list[str]:
        return [
            f"<td>{percent(row[score], 1)}{bar(row[score])}</td>" if score in row else "<td></td>"
            for score in _SCORES
        ]

    # Classes without images say nothing; they come last.
    worst_first = sorted(content["classes"].items(), key=lambda entry: (not entry[1]["images"], entry[1]["f1"]))
    rows = [
        (f'<span title="{shown(name)}">{shown(name)}</span>', *cells(row), f"<td>{row['images']}</td>")
        for name, row in worst_first
    ]
    foot = [
        (f"{name} average", *cells(row), f"<td>{content['images']}</td>") for name, row in content["averages"].items()
    ]
    return (
        "<h2>Classes</h2><p class=note>The worst F1 first. An image is given the classes whose probability is one "
        "half or more. Precision: of what was given the class, how much has it. Recall: of what has the class, how "
        "much was given it. F1: their harmonic mean. Average precision (AP): of the images ranked by the class’s "
        "probability, the precision at each recall; it depends on no threshold, and its mean over the classes that "
        "have images is the mAP. The macro average counts classes alike, the micro average every image and class.</p>"
        f"<div class='box wide'>{html_table(_HEAD, rows, foot)}</div>"
    )


def _calibration(content: Mapping[str, Any]) -> str:
    bins = len(content["calibration"]["bins"])
    return render_calibration(
        content,
        "Each image with each class is a pair. Of the pairs with a probability of 80 %, 80 % should have the class. "
        f"Bars show how many have it, in {bins} bins of probability; the error is their distance from the mean "
        "probability, averaged over all pairs (Guo et al., 2017). Where images lack most classes, most pairs lie in "
        "the first bin and decide the error.",
        OF_PAIRS,
    )


def _mistakes(mistakes: Sequence[SetMistake], content: Mapping[str, Any]) -> str:
    if not mistakes:
        return f"<h2>Mistakes</h2><p class=note>All classes of all {content['images']:,} images are right.</p>"
    cards = [picture_pair(one, _caption(one)) for one in mistakes]
    third = (
        ", and under the attention of the class token in the last block" if mistakes[0].attention is not None else ""
    )
    return (
        "<h2>Mistakes</h2><p class=note>The images with the highest loss that are not all right: each as the model "
        "saw it, and under the heat of where it saw the class that is most wrong, which is named in bold (Grad-CAM, "
        f"Selvaraju et al., 2017){third}. Look for wrong and forgotten labels first.</p>"
        f"<div class=mistakes>{''.join(cards)}</div>"
    )


def _caption(one: SetMistake) -> str:
    def listed(classes: Mapping[str, float]) -> str:
        return ", ".join(
            f"{f'<b>{shown(name)}</b>' if name == one.explained else shown(name)} at {percent(share, 1)}&nbsp;%"
            for name, share in classes.items()
        )

    parts = [f"not given: {listed(one.missed)}"] if one.missed else []
    parts += [f"wrongly given: {listed(one.added)}"] if one.added else []
    right = [name for name in one.predicted if name not in one.added]
    parts += [f"right: <strong>{', '.join(map(shown, right))}</strong>"] if right else []
    return "<br>".join(parts)
