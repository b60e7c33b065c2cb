"""The page of an evaluation: one file that needs no network and runs no script; ``sets_report`` fills it otherwise.

Whatever comes from the data or the checkpoint (class names, paths, settings) is text to the page: control characters
are made visible, the rest is escaped, and a content security policy forbids everything but this page's own style and
the pictures within it.
"""

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import PurePath
from typing import Any

import numpy as np
from PIL import Image

from sat_vg.backbone_finetuning.reports.figures import draw_confusion_matrix
from sat_vg.backbone_finetuning.reports.html_style import STEPS, style_sheet
from sat_vg.backbone_finetuning.reports.svg_charts import OF_IMAGES, Terms, bar, curves_chart, reliability_chart
from sat_vg.backbone_finetuning.utils.printable import one_line

_MOST_CLASSES_AS_TABLE = 40
_PAIRS_SHOWN = 10
_LARGEST_SIDE = 288  # of a thumbnail, in pixels
_SCORES = ("precision", "recall", "f1")


@dataclass(frozen=True)
class Mistake:
    """An image that was given to a wrong class; pictures are uint8 ``[H, W, 3]``.

    Attributes:
        path: of the image, relative to the data folder.
        true: its class.
        predicted: the class that it was given to.
        probability: of that class, 0 to 1.
        image: as the model saw it.
        grad_cam: under the heat of the predicted class.
        attention: under the attention of the last block; None where there is none.
    """

    path: str
    true: str
    predicted: str
    probability: float
    image: np.ndarray
    grad_cam: np.ndarray
    attention: np.ndarray | None = None


@dataclass(frozen=True)
class Report:
    """What the page shows.

    Attributes:
        content: of evaluation.json.
        mistakes: the most confident first.
        epochs: of the training, with ``epoch``, ``train_loss``, ``val_loss``, ``val_accuracy`` and maybe ``val_map``.
        why_no_epochs: where there are none.
    """

    content: Mapping[str, Any]
    mistakes: Sequence[Any]
    epochs: Sequence[Mapping[str, float]]
    why_no_epochs: str = ""


def render_report(report: Report) -> str:
    """The page as HTML, where an image has one class."""
    content = report.content
    sections = {
        "Classes": _classes(content),
        "Confusion": _confusion(content),
        "Calibration": _calibration(content),
        "Mistakes": _mistakes(report.mistakes, content["images"]),
    }
    return render_page(report, _headline(content), sections)


def render_page(report: Report, headline: str, sections: Mapping[str, str]) -> str:
    """The page with these sections, and those on training and settings after them; all of it HTML already."""
    content, style = report.content, style_sheet()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    sections = {**sections, "Training": _training(report), "Settings": _settings(content)}
    links = "".join(f'<a href="#{name.lower()}">{name}</a>' for name in sections)
    body = "".join(f'<section id="{name.lower()}">{text}</section>' for name, text in sections.items())
    version = content["versions"]["evaluation"]["sat_vg"]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="referrer" content="no-referrer"><meta name="color-scheme" content="light dark">'
        f"<title>{_title(content)}</title><style>{style}</style></head>\n<body><main>"
        f"<header><h1>{_title(content)}</h1><p>{_subtitle(content)}</p><nav>{links}</nav></header>"
        f"{headline}{body}"
        f"<footer>Written by sat-vg evaluate, version {shown(version)}.</footer></main></body></html>\n"
    )


def shown(value: object) -> str:
    """A value as text of the page."""
    return escape(one_line(str(value)))


def percent(share: float, digits: int = 2) -> str:
    """A share as a number of hundredths."""
    return f"{100 * share:.{digits}f}"


def _title(content: Mapping[str, Any]) -> str:
    data = content["data"]
    return f"{shown(content['backbone'])} on {shown(PurePath(data).name or data) if data else 'the built-in scenes'}"


def _subtitle(content: Mapping[str, Any]) -> str:
    size, classes = content["image_size"], len(content["classes"])
    return (
        f"{content['images']:,} images of the {shown(content['split'])} split in {classes} classes, seen at "
        f"{size} × {size} pixels. Checkpoint <code>{shown(content['checkpoint'])}</code>"
    )


def _headline(content: Mapping[str, Any]) -> str:
    intervals = content["intervals"]
    level = f"{100 * intervals['level']:.0f} %"
    cards = []
    for name, title in (("accuracy", "Accuracy"), ("macro_f1", "Macro F1"), ("ece", "Calibration error")):
        low, high = intervals[name]
        number = f"{percent(content[name])}<small>%</small>"
        cards.append((title, number, f"{level}: {percent(low, 1)} to {percent(high, 1)}"))
    if "top_5_accuracy" in content:
        cards.insert(1, ("Top 5", f"{percent(content['top_5_accuracy'])}<small>%</small>", "true class among 5"))
    cards.append(("Loss", f"{content['loss']:.4f}", "cross-entropy, nats"))
    return as_cards(cards)


def as_cards(cards: Sequence[tuple[str, str, str]]) -> str:
    """The numbers on top of the page: title, number and note of each, as HTML."""
    boxes = "".join(
        f"<div><span>{title}</span><b>{number}</b><span>{note}</span></div>" for title, number, note in cards
    )
    return f'<div class="cards" id="headline">{boxes}</div>'


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]], foot: Sequence[Sequence[str]] = ()) -> str:
    """A table of cells that are HTML already; the first of each row is its heading."""

    def as_row(cells: Sequence[str]) -> str:
        return f"<tr><th scope=row>{cells[0]}</th>{''.join(cells[1:])}</tr>"

    ends = f"<tfoot>{''.join(map(as_row, foot))}</tfoot>" if foot else ""
    heads = "".join(f"<th scope=col>{cell}</th>" for cell in head)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(map(as_row, rows))}</tbody>{ends}</table>"


def _classes(content: Mapping[str, Any]) -> str:
    def cells(row: Mapping[str, float]) -> list[str]:
        return [f"<td>{percent(row[score], 1)}{bar(row[score])}</td>" for score in _SCORES]

    worst_first = sorted(content["classes"].items(), key=lambda entry: entry[1]["f1"])
    rows = [
        (f'<span title="{shown(name)}">{shown(name)}</span>', *cells(row), f"<td>{row['images']}</td>")
        for name, row in worst_first
    ]
    foot = [
        (f"{name} average", *cells(row), f"<td>{content['images']}</td>") for name, row in content["averages"].items()
    ]
    table = html_table(("class", "precision %", "recall %", "F1 %", "images"), rows, foot)
    return (
        "<h2>Classes</h2><p class=note>The worst F1 first. Precision: of what was given to the class, how much "
        "belongs there. Recall: of what belongs there, how much was found. F1: their harmonic mean. The macro "
        f"average counts classes alike, the weighted one images.</p><div class='box wide'>{table}</div>"
    )


def _confusion(content: Mapping[str, Any]) -> str:
    names, counts = list(content["classes"]), content["confusion"]
    heading = "<h2>Confusion</h2>"
    if len(names) > _MOST_CLASSES_AS_TABLE:
        file = io.BytesIO()
        figure = draw_confusion_matrix(np.array(counts), names, f"images of {content['split']}")
        figure.savefig(file, format="png", dpi=60)
        picture = f'<img class="picture" alt="confusion matrix" src="{_uri(file.getvalue(), "png")}">'
        matrix = f"<p class=note>Rows: true class. Columns: predicted class.</p><div class=box>{picture}</div>"
    else:
        matrix = _matrix(names, counts, content["confusion_normalised"])
    return f"{heading}{matrix}{_frequent_pairs(names, counts, content['confusion_normalised'])}"


def _matrix(names: Sequence[str], counts: Sequence[Sequence[int]], shares: Sequence[Sequence[float]]) -> str:
    """The matrix with both readings in each cell; a switch without script shows one of them."""
    heads = "".join(f'<th scope=col title="{shown(name)}"><span>{shown(name)}</span></th>' for name in names)
    rows = []
    for i, name in enumerate(names):
        cells = "".join(_cell(i == j, counts[i][j], shares[i][j]) for j in range(len(names)))
        rows.append(f'<tr><th scope=row title="{shown(name)}">{shown(name)}</th>{cells}</tr>')
    return (
        "<p class=note>Rows: true class. Columns: predicted class. Blue is right, orange is wrong; even rare "
        "mistakes are coloured.</p>"
        '<input class=pick type=radio name=as id="as-shares" checked>'
        '<input class=pick type=radio name=as id="as-counts">'
        '<div class=switch><label for="as-shares">% of the true class</label>'
        '<label for="as-counts">images</label></div>'
        f'<div class=box><table id="matrix"><thead><tr><th>true ↓ &nbsp; predicted →</th>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(is_right: bool, count: int, share: float) -> str:
    if not count:
        return "<td></td>"
    # The root lets single mistakes among hundreds be seen.
    step = max(1, round(STEPS * (share if is_right else share**0.5)))
    number = "<1" if share < 0.005 else percent(share, 0)
    colour = f"{'r' if is_right else 'w'}{step}"
    return f"<td class={colour}><span class=s>{escape(number)}</span><span class=n>{count}</span></td>"


def _frequent_pairs(names: Sequence[str], counts: Sequence[Sequence[int]], shares: Sequence[Sequence[float]]) -> str:
    pairs = [(counts[i][j], i, j) for i in range(len(names)) for j in range(len(names)) if i != j and counts[i][j]]
    if not pairs:
        return "<p class=note>Nothing was confused.</p>"
    pairs.sort(key=lambda pair: -pair[0])
    rows = [
        (
            shown(names[i]),
            f"<td class=name>{shown(names[j])}</td>",
            f"<td>{count}</td>",
            f"<td>{percent(shares[i][j], 1)}</td>",
        )
        for count, i, j in pairs[:_PAIRS_SHOWN]
    ]
    table = html_table(("true class", "taken for", "images", "% of the class"), rows)
    return f'<p class="note after">Most frequent confusions</p><div class=box id="pairs">{table}</div>'


def _calibration(content: Mapping[str, Any]) -> str:
    bins = len(content["calibration"]["bins"])
    return render_calibration(
        content,
        "Of the predictions made with 80 % confidence, 80 % should be right. Bars show how many are, in "
        f"{bins} bins of confidence; the error is their distance from the mean confidence, averaged over all images "
        "(Guo et al., 2017).",
        OF_IMAGES,
    )


def render_calibration(content: Mapping[str, Any], note: str, terms: Terms) -> str:
    """The section on calibration, with a note in HTML on how it is to be read."""
    found = content["calibration"]
    numbers = {"expected error": f"{percent(content['ece'])} %"}
    if "ece" in content["intervals"]:
        low, high = content["intervals"]["ece"]
        numbers["its interval"] = (
            f"{percent(low)} to {percent(high)} %; high, as drawing images anew adds to this error"
        )
    numbers |= {
        "temperature": f"{found['temperature']:.4g}" + ("" if found["temperature"] != 1 else " (not calibrated)"),
        "log-likelihood": f"−{found['nll']:.4f} per {terms.each}",
    }
    if found["temperature"] != 1:
        numbers["without it"] = f"{percent(found['uncalibrated_ece'])} % error, −{found['uncalibrated_nll']:.4f}"
        if content["calibrated_here"]:
            numbers["fitted on"] = "these very images, so the error is somewhat flattered"
    else:
        numbers["to calibrate"] = "sat-vg evaluate CHECKPOINT --calibrate PATH"
    listed = "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in numbers.items())
    return (
        f"<h2>Calibration</h2><p class=note>{note}</p>"
        f"<div class=two><div><ul class=key><li>{terms.accuracy}</li><li class='gap flat'>mean {terms.confidence}"
        f"</li><li class=dash>calibrated</li></ul>{reliability_chart(found['bins'], terms)}</div>"
        f"<dl>{listed}</dl></div>"
    )


def _mistakes(mistakes: Sequence[Mistake], images: int) -> str:
    if not mistakes:
        return f"<h2>Mistakes</h2><p class=note>All {images:,} images are right.</p>"
    third = (
        ", and under the attention of the class token in the last block" if mistakes[0].attention is not None else ""
    )
    cards = [
        picture_pair(
            one,
            f"taken for <b>{shown(one.predicted)}</b> at {percent(one.probability, 1)} %, is "
            f"<strong>{shown(one.true)}</strong>",
        )
        for one in mistakes
    ]
    return (
        "<h2>Mistakes</h2><p class=note>The most confident ones: each as the model saw it, and under the heat of "
        f"where it saw the class that it took it for (Grad-CAM, Selvaraju et al., 2017){third}. Look for wrong "
        f"labels first.</p><div class=mistakes>{''.join(cards)}</div>"
    )


def picture_pair(one: Any, caption: str) -> str:
    """The pictures of a mistake side by side, with a caption in HTML and the path below."""
    views = [(one.image, "image"), (one.grad_cam, "under Grad-CAM")]
    views += [(one.attention, "under attention")] if one.attention is not None else []
    pictures = "".join(f'<img src="{picture_uri(view)}" alt="{shown(one.path)}, {what}">' for view, what in views)
    return (
        f"<figure><div class=pair>{pictures}</div><figcaption>{caption}<br><code>{shown(one.path)}</code>"
        "</figcaption></figure>"
    )


def picture_uri(picture: np.ndarray) -> str:
    """A picture, uint8 ``[H, W, 3]``, as the address of a JPEG that lies in the address itself."""
    image = Image.fromarray(picture)
    image.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=88)
    return _uri(file.getvalue(), "jpeg")


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _training(report: Report) -> str:
    heading, epochs = "<h2>Training</h2>", report.epochs
    if not epochs:
        return f"{heading}<p class=note>There are no curves: {shown(report.why_no_epochs)}.</p>"
    best = report.content["training"]["metrics"]["epoch"]
    metric, what = ("val_map", "mAP") if "val_map" in epochs[0] else ("val_accuracy", "accuracy")
    if len(epochs) == 1:
        one = epochs[0]
        return (
            f"{heading}<p class=note>One epoch: training loss {one['train_loss']:.4f}, validation loss "
            f"{one['val_loss']:.4f}, validation {what} {percent(one[metric])} %.</p>"
        )
    numbers = [entry["epoch"] for entry in epochs]
    losses = {"main": [entry["val_loss"] for entry in epochs], "gap": [entry["train_loss"] for entry in epochs]}
    shares = {"main": [100 * entry[metric] for entry in epochs]}
    charts = curves_chart(numbers, losses, "loss", best) + curves_chart(numbers, shares, f"{what}, %", best)
    return (
        f"{heading}<p class=note>The checkpoint is that of epoch {shown(best)}, which is marked.</p>"
        "<ul class=key><li>validation</li><li class=gap>training</li></ul>"
        f"<div class=two>{charts}</div>"
    )


def _settings(content: Mapping[str, Any]) -> str:
    def listing(values: Mapping[str, object]) -> str:
        return (
            "<dl class=config>"
            + "".join(f"<dt>{shown(k)}</dt><dd>{shown(v)}</dd>" for k, v in values.items())
            + "</dl>"
        )

    training, versions = content["training"], content["versions"]
    here = {"checkpoint": content["checkpoint"], "data": content["data"], "split": content["split"]}
    return (
        f"<h2>Settings</h2><p class=note>What was evaluated.</p>{listing(here)}"
        f"<details><summary>configuration of the training</summary>{listing(training['config'])}</details>"
        f"<details><summary>metrics in the checkpoint</summary>{listing(training['metrics'])}</details>"
        f"<details><summary>versions that trained</summary>{listing(versions['training'])}</details>"
        f"<details><summary>versions that evaluated</summary>{listing(versions['evaluation'])}</details>"
    )
