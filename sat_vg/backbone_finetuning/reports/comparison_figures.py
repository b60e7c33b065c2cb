"""Pictures of a comparison: accuracy (or mAP) as bars over the seeds' spread, and against what it costs."""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from sat_vg.backbone_finetuning.reports.comparison_report import Comparison, Row
from sat_vg.backbone_finetuning.reports.figures import plain
from sat_vg.backbone_finetuning.reports.seed_statistics import deviation

_WIDTH = 6.6  # inches: wide enough for the names, narrow enough to be read on a telephone
_ZOOM_FROM = 0.5  # bars begin at 0 unless all are above this
_MARKERS = "osD^vPX*<>"
_MOST_NAMES = 12  # on one picture; with more labels they are ranks
_LABEL_GAP = 2.0  # pixels around a label, at 100 dpi
_LABEL_TURNS = 24  # directions that are tried at each distance
_LABEL_REACHES = (9, 14, 20, 28, 38, 50, 64, 80, 100, 125, 155, 190)  # pixels


@dataclass(frozen=True)
class Theme:
    """Colours of a picture.

    Attributes:
        ink: of text and axes.
        faint: of grid lines and of what leads from a label to its point.
        paper: behind everything; ``none``: transparent.
        strategies: one colour each; told apart by people who see few colours as well (Okabe & Ito, 2008).
    """

    ink: str = "#1a1a1a"
    faint: str = "#b8b8b8"
    paper: str = "white"
    strategies: tuple[str, ...] = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")


LIGHT = Theme()
DARK = Theme(
    ink="#e6e6e6",
    faint="#5a5f66",
    paper="none",
    strategies=("#56b4e9", "#f0843c", "#2fc49a", "#e19ac3", "#f0c04a"),
)


@dataclass(frozen=True)
class Cost:
    """What accuracy is drawn against.

    Attributes:
        label: of the axis.
        of: the cost of a row.
    """

    label: str
    of: Callable[[Row], float]


@dataclass(frozen=True)
class Point:
    """A point with its error bar, in the units of the axes."""

    x: float
    y: float
    low: float
    high: float


FLOPS = Cost("GFLOPs of one image, forward (log scale)", lambda row: row.flops / 1e9)
TRAINING = Cost("seconds of training (log scale)", lambda row: row.seconds)


def draw_accuracies(comparison: Comparison, theme: Theme = LIGHT) -> Figure:
    """A bar for each row, best first, with the standard deviation over seeds and a dot for each seed."""
    rows, colours = comparison.rows, _colours(comparison, theme)
    figure = _paper(theme, height=1.5 + 0.42 * len(rows))
    axes = figure.add_subplot()
    places = np.arange(len(rows))
    lowest = min(min(row.scores) for row in rows)
    start = 0 if lowest < _ZOOM_FROM else min(95, math.floor(100 * (lowest - (1 - lowest) / 2) / 5) * 5)
    means = [100 * row.score for row in rows]
    for place, row in zip(places, rows, strict=True):
        spread = deviation(row.scores)
        axes.barh(place, means[place] - start, left=start, height=0.62, color=colours[row.strategy], alpha=0.75)
        axes.plot(
            [100 * value for value in row.scores], [place] * len(row.scores),
            "o", markersize=3, color=theme.ink, alpha=0.75, zorder=3,
        )  # fmt: skip
        if spread is not None:
            axes.errorbar(means[place], place, xerr=100 * spread, color=theme.ink, capsize=3.5, linewidth=1.2)
        end = 100 * max(row.score + (spread or 0), *row.scores)
        axes.annotate(
            f"{means[place]:.2f}", (end, place), xytext=(5, 0), textcoords="offset points", va="center",
            color=theme.ink, fontsize=9,
        )  # fmt: skip
    ends = [100 * max(row.score + (deviation(row.scores) or 0), *row.scores) for row in rows]
    reach = max(*ends, start + 1.0)
    axes.set_xlim(start, reach + 0.13 * (reach - start))  # room for the numbers
    axes.set_xticks([tick for tick in axes.get_xticks() if start <= tick <= 100])
    axes.set_yticks(places, [_name(row) for row in rows])
    axes.set_ylim(len(rows) - 0.45, -0.55)
    begins = f"; the axis begins at {start:g} %" if start else ""
    axes.set_xlabel(f"validation {comparison.measure.name}, %{begins}")
    _style(axes, theme, "x")
    _legend(figure, comparison, colours, theme)
    return figure


def draw_accuracy_against(comparison: Comparison, cost: Cost, theme: Theme = LIGHT) -> Figure:
    """A labelled point for each row, accuracy up and cost to the right on a log scale; no two labels overlap."""
    rows, colours = comparison.rows, _colours(comparison, theme)
    figure = _paper(theme, height=4.6)
    axes = figure.add_subplot()
    markers = {name: _MARKERS[i % len(_MARKERS)] for i, name in enumerate(dict.fromkeys(r.backbone for r in rows))}
    xs, ys = [max(cost.of(row), 1e-9) for row in rows], [100 * row.score for row in rows]
    axes.set_xscale("log")
    for row, x, y in zip(rows, xs, ys, strict=True):
        colour, spread = colours[row.strategy], deviation(row.scores)
        axes.errorbar(x, y, yerr=None if spread is None else 100 * spread, color=colour, linewidth=1, capsize=2)
        axes.plot(x, y, markers[row.backbone], color=colour, markersize=7, markeredgecolor=theme.ink, zorder=3)
    reached = _reached(rows)
    _room(axes, xs, reached)
    labels = _labels(rows, cost)
    numbers = "" if set(labels.values()) <= {_short(row) for row in rows} else "; numbers are ranks"
    axes.set(xlabel=f"{cost.label}{numbers}", ylabel=f"validation {comparison.measure.name}, %")
    _style(axes, theme, "both")
    _legend(figure, comparison, colours, theme)
    place_labels(
        figure, axes, [Point(*p) for p in zip(xs, ys, reached[::2], reached[1::2], strict=True)], labels, theme
    )
    return figure


def _labels(rows: Sequence[Row], cost: Cost) -> dict[int, str]:
    """The labels by position of the row: names of backbones, or ranks where there are too many of them.

    Where a backbone costs the same with every strategy, its points lie above one another and the first has one.
    """
    of_backbone: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        of_backbone.setdefault(row.backbone, []).append(place)
    chosen = []
    for places in of_backbone.values():
        same = len({cost.of(rows[place]) for place in places}) == 1
        chosen += places[:1] if same else places
    return {place: str(place + 1) if len(chosen) > _MOST_NAMES else _short(rows[place]) for place in sorted(chosen)}


def _short(row: Row) -> str:
    return plain(row.backbone, limit=24)


def _reached(rows: Sequence[Row]) -> list[float]:
    """The lower and the upper end of each error bar, in percent."""
    return [100 * (row.score + sign * (deviation(row.scores) or 0)) for row in rows for sign in (-1, 1)]


def _room(axes: Axes, xs: Sequence[float], ys: Sequence[float]) -> None:
    """Limits that leave room for labels, and ticks that are numbers and not powers."""
    wide = max(math.log10(max(xs) / min(xs)), 0.4)
    middle = math.log10(max(xs) * min(xs)) / 2
    axes.set_xlim(10 ** (middle - 0.75 * wide), 10 ** (middle + 0.75 * wide))
    high = max(max(ys) - min(ys), 1.0)
    limits = (min(ys) - 0.15 * high, max(ys) + 0.15 * high)
    axes.set_ylim(limits)
    axes.set_yticks([tick for tick in axes.get_yticks() if limits[0] <= tick <= min(limits[1], 100)])
    axes.xaxis.set_major_locator(
        LogLocator(subs=(1,) if wide > 2 else (1, 2, 5) if wide > 0.8 else (1, 1.5, 2, 3, 4, 6, 8))
    )
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def place_labels(
    figure: Figure, axes: Axes, points: Sequence[Point], names: Mapping[int, str], theme: Theme
) -> list[Text]:
    """Write each name beside its point, as near as may be without touching another name or point.

    Args:
        figure: of the axes.
        axes: whose limits are final.
        points: all of them, labelled or not.
        names: by position of the point.
        theme: colours.

    Returns:
        The labels, in the order of ``names``.
    """
    figure.set_dpi(100)
    figure.draw_without_rendering()  # only now does the layout say where the axes are
    figure.set_layout_engine("none")
    inside = axes.get_window_extent()
    at = axes.transData.transform([(point.x, point.y) for point in points])
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in at]
    ends = [axes.transData.transform([(point.x, point.low), (point.x, point.high)]) for point in points]
    # Error bars are crossed only where there is no other room.
    bars = [Bbox([(low[0] - 3, low[1]), (high[0] + 3, high[1])]) for low, high in ends]
    labels = []
    for place, name in names.items():
        x, y = at[place]
        label = axes.text(0, 0, name, fontsize=8.5, color=theme.ink, va="center", ha="center", transform=None)
        size = label.get_window_extent()
        centre = (
            _free_place(x, y, size.width, size.height, [*taken, *bars], inside)
            or _free_place(x, y, size.width, size.height, taken, inside)
            or (x, y + size.height)
        )
        label.set_transform(axes.transData)
        label.set_position(tuple(axes.transData.inverted().transform(centre)))
        box = _box(centre[0], centre[1], size.width, size.height)
        taken.append(box)
        labels.append(label)
        nearest = np.clip((x, y), box.min, box.max)
        if math.dist(nearest, (x, y)) > 12:
            line = axes.transData.inverted().transform([nearest, (x, y)])
            axes.plot(line[:, 0], line[:, 1], color=theme.faint, linewidth=0.8, zorder=1, scalex=False, scaley=False)
    return labels


def _free_place(
    x: float, y: float, width: float, height: float, taken: Sequence[Bbox], inside: Bbox
) -> tuple[float, float] | None:
    """The centre of a box of this size that is nearest to (x, y) and touches nothing, in pixels; None: no room."""
    for reach in _LABEL_REACHES:
        for turn in range(_LABEL_TURNS):
            angle = 2 * math.pi * turn / _LABEL_TURNS
            cos, sin = math.cos(angle), math.sin(angle)
            # The box is moved out until its nearer side is at the reach, whatever its length.
            centre = (x + cos * reach + width / 2 * _soft_sign(cos), y + sin * reach + height / 2 * _soft_sign(sin))
            box = _box(*centre, width, height)
            is_inside = inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
            if is_inside and not any(box.overlaps(other) for other in taken):
                return centre
    return None


def _soft_sign(value: float) -> float:
    return max(-1.0, min(1.0, 2 * value))


def _box(x: float, y: float, width: float, height: float) -> Bbox:
    gap = _LABEL_GAP
    return Bbox.from_bounds(x - width / 2 - gap, y - height / 2 - gap, width + 2 * gap, height + 2 * gap)


def _name(row: Row) -> str:
    return f"{_short(row)}\n{plain(row.strategy)}"


def _colours(comparison: Comparison, theme: Theme) -> dict[str, str]:
    strategies = sorted({row.strategy for row in comparison.rows})
    return {name: theme.strategies[i % len(theme.strategies)] for i, name in enumerate(strategies)}


def _paper(theme: Theme, height: float) -> Figure:
    return Figure(figsize=(_WIDTH, height), layout="constrained", facecolor=theme.paper)


def _style(axes: Axes, theme: Theme, grid: Literal["x", "both"]) -> None:
    axes.set_facecolor("none")
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color=theme.faint, alpha=0.5, linewidth=0.6)
    axes.tick_params(which="both", colors=theme.ink, labelsize=9)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(theme.ink)
    for name, spine in axes.spines.items():
        spine.set_color(theme.ink)
        spine.set_visible(name in ("left", "bottom"))


def _legend(figure: Figure, comparison: Comparison, colours: dict[str, str], theme: Theme) -> None:
    if len(colours) < 2:
        return
    handles = [matplotlib.patches.Patch(color=colour, label=plain(name)) for name, colour in colours.items()]
    figure.legend(
        handles=handles, loc="outside upper center", ncols=min(len(handles), 3), frameon=False,
        labelcolor=theme.ink, fontsize=9,
    )  # fmt: skip


def as_svg(figure: Figure) -> bytes:
    """The picture as SVG: texts as outlines, no date, so that the same picture is the same file."""
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "sat_vg"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def as_png(figure: Figure) -> bytes:
    """The picture as PNG, of twice the resolution of a plain screen."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=200, metadata={"Software": None})
    return file.getvalue()
