"""The results of a comparison as one HTML page that needs no other file, no network and no script."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from urllib.parse import quote

from sat_vg.backbone_finetuning.reports.comparison_report import (
    TEXT_COLUMNS,
    Comparison,
    cells_of,
    headings_of,
    points,
)
from sat_vg.backbone_finetuning.utils.printable import one_line

_STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --soft: #5b6169; --line: #d9dce0; --card: #f5f7f9; --good: #00694d }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --soft: #a3a9b1; --line: #3a3f46; --card: #1f2429; --good: #5fd0a8 }
}
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.5rem; max-width: 76rem; background: Canvas; color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
@media (prefers-color-scheme: dark) { body { background: #14171a } }
h1 { font-size: 1.5rem; margin: 0 0 1rem } h2 { font-size: 1.15rem; margin: 2rem 0 .6rem }
.card { background: var(--card); border-left: 4px solid var(--good); padding: .8rem 1rem; border-radius: 4px }
.bad { border-left-color: #c4451c }
.card p { margin: 0 0 .5rem } .card p:last-child { margin: 0 }
table { border-collapse: collapse; width: 100%; font-size: .875rem; font-variant-numeric: tabular-nums;
  overflow-wrap: normal }
th, td { padding: .4rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th { color: var(--soft); font-weight: 600; white-space: normal; vertical-align: bottom }
.text { text-align: left }
tr.best td { font-weight: 600 }
.charts > :first-child { grid-column: 1 / -1; max-width: 46rem }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); gap: 1.5rem }
figure { margin: 0 } figure img { width: 100%; height: auto; display: block }
figcaption, .note { color: var(--soft); font-size: .875rem }
.note p { margin: .35rem 0 }
pre { background: var(--card); padding: .8rem 1rem; border-radius: 4px; white-space: pre-wrap; font-size: .85rem;
  margin: .4rem 0 }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; font-size: .875rem; margin: .4rem 0 }
ul { columns: 18rem; font-size: .875rem; padding-left: 1.2rem; margin: .4rem 0 } a { color: inherit }
dt { color: var(--soft) } dd { margin: 0 }
@media (max-width: 62rem) {
  body { padding: 1rem }
  thead { display: none }
  table, tbody { display: block }
  tr { display: flex; flex-wrap: wrap; gap: .35rem .8rem; padding: .7rem 0; border-bottom: 1px solid var(--line) }
  td { border: 0; padding: 0; text-align: left; white-space: normal; flex: 0 0 calc(33.3% - .8rem) }
  td::before { content: attr(data-label); display: block; color: var(--soft); font-size: .75rem; font-weight: 400 }
  td:nth-child(-n+3) { flex: none; font-size: 1rem; font-weight: 600 }
  td:nth-child(-n+3)::before { content: none }
  td:nth-child(3) { flex: 1 0 40% }
  dl { grid-template-columns: 1fr; gap: 0 } dd { margin-bottom: .4rem }
}
"""


@dataclass(frozen=True)
class Picture:
    """A picture for both colour schemes.

    Attributes:
        title: what it shows.
        light: SVG for light paper.
        dark: SVG for dark paper.
    """

    title: str
    light: bytes
    dark: bytes


def as_html(comparison: Comparison, pictures: Sequence[Picture]) -> str:
    """The page; whatever came from outside is escaped, and the page forbids its browser to run or load anything."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Comparison of backbones</title><style>{_STYLE}</style></head><body>",
        "<h1>Comparison of backbones</h1>",
        f'<p class="note">{text(comparison.subtitle)}</p>' if comparison.subtitle else "",
        f'<div class="card"><p>{text(comparison.recommendation)}</p></div>',
        _failures(comparison),
        "<h2>Ranking</h2>" + _table(comparison) if comparison.rows else "",
        f'<div class="note">{"".join(f"<p>{text(note)}</p>" for note in comparison.notes)}</div>',
        _charts(pictures),
        _intervals(comparison),
        _settings(comparison),
        _reports(comparison),
        "</body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def text(value: str) -> str:
    """A text as HTML."""
    return escape(one_line(value), quote=True)


def _table(comparison: Comparison) -> str:
    headings = headings_of(comparison)
    kinds = [' class="text"' if i in TEXT_COLUMNS else "" for i in range(len(headings))]
    head = "".join(f'<th scope="col"{kind}>{text(h)}</th>' for h, kind in zip(headings, kinds, strict=True))
    lines = []
    for place, row in enumerate(cells_of(comparison)):
        cells = "".join(
            f'<td{kind} data-label="{text(heading)}">{text(cell)}</td>'
            for kind, heading, cell in zip(kinds, headings, row, strict=True)
        )
        first = ' class="best"' if place == 0 else ""
        lines.append(f"<tr{first}>{cells}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _charts(pictures: Sequence[Picture]) -> str:
    return (
        "".join(["<h2>Pictures</h2>", '<div class="charts">', *map(_figure, pictures), "</div>"]) if pictures else ""
    )


def _figure(picture: Picture) -> str:
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{_address(picture.dark)}">'
        f'<img alt="{text(picture.title)}" src="{_address(picture.light)}"></picture>'
        f"<figcaption>{text(picture.title)}</figcaption></figure>"
    )


def _address(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{b64encode(svg).decode()}"


def _intervals(comparison: Comparison) -> str:
    """How far each row is from the best, with its interval."""
    lines = []
    for row in comparison.rows[1:]:
        behind = comparison.behind_best(row)
        if behind.low is None or behind.high is None:
            continue
        verdict = "within noise" if behind.is_noise else "more than noise"
        lines.append(
            f"<dt>{text(row.name)}</dt><dd>{points(behind.value)} "
            f"({points(behind.low)} to {points(behind.high)}): {verdict}</dd>"
        )
    heading = "<h2>Distance to the best, percentage points, with its 95 % interval</h2>"
    return f"{heading}<dl>{''.join(lines)}</dl>" if lines else ""


def _failures(comparison: Comparison) -> str:
    if not comparison.failures:
        return ""
    lines = "".join(
        f"<p><strong>{text(one.cell)}</strong> failed: {text(one.reason)}</p>" for one in comparison.failures
    )
    return f'<div class="card bad" style="margin-top:1rem">{lines}</div>'


def _settings(comparison: Comparison) -> str:
    pairs = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in comparison.settings)
    parts = [f"<h2>Settings</h2><dl>{pairs}</dl>" if pairs else ""]
    if comparison.command:
        parts.append(f"<h2>Again</h2><pre>{text(comparison.command)}</pre>")
    return "".join(parts)


def _reports(comparison: Comparison) -> str:
    """Links to the evaluations of the cells, which lie beside the page."""
    lines = "".join(f'<li><a href="{quote(path)}">{text(cell)}</a></li>' for cell, path in comparison.reports)
    return f"<h2>Evaluation of each training</h2><ul>{lines}</ul>" if lines else ""
