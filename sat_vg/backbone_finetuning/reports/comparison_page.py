"""The results of a comparison as one HTML page, comparison.html, and as a chart: scores over seeds, and costs."""

import math
import re

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from sat_vg.backbone_finetuning.reports.comparison_report import Comparison, Row, points, table_of
from sat_vg.backbone_finetuning.reports.figures import add_grid, plain
from sat_vg.backbone_finetuning.reports.pages import figure_url, render_page
from sat_vg.backbone_finetuning.reports.seed_statistics import deviation

_ZOOM_FROM = 0.5  # the axis begins at 0 unless all scores are above this
_LONGEST_LINE, _MOST_LINES = 24, 3  # letters and lines of a backbone's name
# Distinguishable with colour vision deficiency (Okabe & Ito, 2008).
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")


def as_html(comparison: Comparison) -> str:
    """The page; see ``reports.pages`` for what it guards against."""
    differences = [(row.name, comparison.behind_best(row)) for row in comparison.rows[1:]]
    sections = {
        "Failures": comparison.failures,
        "Ranking": comparison.rows,
        "Chart": comparison.rows,
        "Differences": [found for _, found in differences if found.is_noise is not None],
        "Settings": comparison.settings or comparison.command,
        "Evaluations": comparison.reports,
    }
    headings, cells = table_of(comparison)
    return render_page(
        "comparison.html",
        title="Comparison of backbones",
        sections=[name for name, content in sections.items() if content],
        comparison=comparison,
        headings=headings[3:],
        lines=list(zip(comparison.rows, cells, strict=True)),
        chart=figure_url(draw_comparison(comparison)),
        differences=differences,
        points=points,
    )


def draw_comparison(comparison: Comparison) -> Figure:
    """A line for each row, best first: the mean score with its standard deviation and a dot for each seed, and costs.

    The axis of the scores begins at 0, or says where it begins.
    """
    rows = comparison.rows
    strategies = sorted({row.strategy for row in rows})
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(strategies)}
    names = [_in_lines(row.backbone) for row in rows]
    height = 0.42 + 0.14 * max(name.count("\n") for name in names)  # inches, of a row
    figure = Figure(figsize=(7.2, 1.5 + height * len(rows)), layout="constrained")
    scores, flops, seconds = figure.subplots(1, 3, sharey=True, width_ratios=(3, 1, 1))
    lowest = min(min(row.scores) for row in rows)
    start = 0 if lowest < _ZOOM_FROM else min(95, math.floor(100 * (lowest - (1 - lowest) / 2) / 5) * 5)
    for place, row in enumerate(rows):
        colour, mean = colours[row.strategy], 100 * row.score
        scores.barh(place, mean - start, left=start, height=0.62, color=colour, alpha=0.75)
        scores.errorbar(mean, place, xerr=100 * (deviation(row.scores) or 0), color="black", capsize=3.5)
        scores.plot([100 * value for value in row.scores], [place] * len(row.scores), "o", markersize=3, color="0.2")
        _annotate(scores, _upper_end(row), place, f"{mean:.2f}")
        for axes, cost in ((flops, row.flops / 1e9), (seconds, row.seconds)):
            axes.barh(place, cost, height=0.62, color=colour, alpha=0.75)
            _annotate(axes, cost, place, f"{cost:,.0f}" if cost >= 100 else f"{cost:.3g}")
    reach = max(*map(_upper_end, rows), start + 1.0)
    scores.set_xlim(start, reach + 0.2 * (reach - start))  # room for the numbers
    scores.set_xticks([tick for tick in scores.get_xticks() if start <= tick <= 100])
    scores.set_yticks(
        range(len(rows)), [f"{name}\n{plain(row.strategy)}" for name, row in zip(names, rows, strict=True)]
    )
    scores.set_ylim(len(rows) - 0.45, -0.55)
    begins = f"; the axis begins at {start:g} %" if start else ""
    scores.set_xlabel(f"validation {comparison.measure}, %{begins}")
    for axes, label in ((flops, "GFLOPs"), (seconds, "training, s")):
        axes.set(xlabel=label, xlim=(0, 1.5 * (axes.get_xlim()[1] or 1)))
    for axes in (scores, flops, seconds):
        add_grid(axes, "x")
    if len(strategies) > 1:
        handles = [Patch(color=colours[name], label=plain(name)) for name in strategies]
        figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 3), frameon=False)
    return figure


def _in_lines(name: str) -> str:
    """The name of a backbone, broken after _ . / : and - where it is longer than the margin is wide."""
    lines = [""]
    for part in re.findall(r"[^_./:-]+[_./:-]*|[_./:-]+", name):
        if lines[-1] and len(lines[-1]) + len(part) > _LONGEST_LINE:
            lines.append("")
        lines[-1] += part
    return "\n".join(plain(line, limit=_LONGEST_LINE) for line in lines[:_MOST_LINES])


def _upper_end(row: Row) -> float:
    return 100 * max(row.score + (deviation(row.scores) or 0), *row.scores)


def _annotate(axes: Axes, x: float, y: float, text: str) -> None:
    axes.annotate(text, (x, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9)
