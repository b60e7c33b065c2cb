"""The page of an evaluation, report.html."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from sat_vg.backbone_finetuning.reports.evaluation_figures import TERMS, draw_reliability
from sat_vg.backbone_finetuning.reports.figures import draw_learning_curves
from sat_vg.backbone_finetuning.reports.pages import figure_url, image_url, picture_url, render_page
from sat_vg.backbone_finetuning.reports.record_pictures import draw_confusion, measure_of

_MAX_CLASSES_AS_TABLE = 40  # of a confusion matrix; with more it is a picture
_MAX_PAIRS = 10


def render_report(
    content: Mapping[str, Any],
    pictures: Sequence[Mapping[str, np.ndarray]],
    epochs: Sequence[Mapping[str, float]],
    why_no_epochs: str = "",
) -> str:
    """The page as HTML, from the template of the content's task.

    Args:
        content: of evaluation.json.
        pictures: of each of its mistakes: description and uint8 ``[H, W, 3]`` of the image and its heat maps.
        epochs: of the training, as its log has them.
        why_no_epochs: where there are none.
    """
    data, terms = content["data"], TERMS[content["task"]]
    source = (PurePath(data).name or data) if data else "the built-in scenes"
    measure_key, measure = measure_of(epochs[0]) if epochs else ("", "")
    curves = None
    if len(epochs) > 1:
        best = content["training"]["metrics"]["epoch"]
        curves = figure_url(draw_learning_curves(epochs, best))
    return render_page(
        f"evaluation_{content['task']}.html",
        title=f"{content['backbone']} on {source}",
        content=content,
        terms=terms,
        # Classes without images say nothing; they come last.
        class_rows=sorted(content["classes"].items(), key=lambda entry: (not entry[1]["images"], entry[1]["f1"])),
        confused_pairs=_confused_pairs(content),
        confusion_picture=_confusion_picture(content),
        reliability=figure_url(draw_reliability(content["calibration"]["bins"], content["ece"], terms)),
        mistakes=[
            (entry, [(what, image_url(picture)) for what, picture in views.items()])
            for entry, views in zip(content["mistakes"], pictures, strict=True)
        ],
        has_attention=any("attention" in views for views in pictures),
        curves=curves,
        measure=measure,
        measure_key=measure_key,
        epochs=epochs,
        why_no_epochs=why_no_epochs,
    )


def _confused_pairs(content: Mapping[str, Any]) -> list[tuple[str, str, int, float]]:
    """True class, predicted class, number of images and share of the true class; the most frequent first."""
    names = list(content["classes"])
    pairs = [
        (names[i], names[j], count, content["confusion_normalised"][i][j])
        for i, row in enumerate(content.get("confusion", []))
        for j, count in enumerate(row)
        if i != j and count
    ]
    return sorted(pairs, key=lambda pair: -pair[2])[:_MAX_PAIRS]


def _confusion_picture(content: Mapping[str, Any]) -> str | None:
    names = list(content["classes"])
    if "confusion" not in content or len(names) <= _MAX_CLASSES_AS_TABLE:
        return None
    return picture_url(draw_confusion(np.array(content["confusion"]), names, content["split"]))
