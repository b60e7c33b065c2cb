"""Charts as SVG for pages: they take the page's colours and fonts, and need no script.

Sizes are in units of about a pixel on a phone; a page scales them up. Colours come from the page's style by class.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_WIDTH, _LEFT, _RIGHT, _TOP = 360, 42, 350, 10


@dataclass(frozen=True)
class Terms:
    """What a reliability diagram calls its parts.

    Attributes:
        confidence: the probability that something was said with.
        accuracy: the share of it that came true.
        came_true: the same behind a number.
        counted: what was said, in the plural.
        each: in the singular.
    """

    confidence: str = "confidence"
    accuracy: str = "accuracy"
    came_true: str = "right"
    counted: str = "images"
    each: str = "image"


OF_IMAGES = Terms()
OF_PAIRS = Terms("probability", "share that has the class", "have the class", "pairs", "pair of an image and a class")


def bar(share: float) -> str:
    """A thin bar of ``share`` (0 to 1) of its place's width."""
    return (
        '<svg class="bar" viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="rail" width="100" height="4"/><rect width="{100 * share:.1f}" height="4"/></svg>'
    )


def reliability_chart(bins: Sequence[Mapping[str, float]], terms: Terms = OF_IMAGES) -> str:
    """Accuracy by confidence (Guo et al., 2017), with the number of images below.

    Args:
        bins: with ``low``, ``high``, ``images``, mean ``confidence`` and ``accuracy``; shares of 1.
        terms: what these are called.
    """
    bottom, floor, height = 250, 316, 50
    most = max(row["images"] for row in bins)
    parts = [_grid(bottom, [(share, f"{100 * share:.0f}") for share in (0, 0.25, 0.5, 0.75, 1)])]
    parts.append(f'<line class="ideal" x1="{_LEFT}" y1="{bottom}" x2="{_RIGHT}" y2="{_TOP}"/>')
    for row in bins:
        if not row["images"]:
            continue
        left, width = _x(row["low"]) + 1, _x(row["high"]) - _x(row["low"]) - 2
        right, sure = (bottom - share * (bottom - _TOP) for share in (row["accuracy"], row["confidence"]))
        count = max(1.0, height * row["images"] / most)
        parts.append(
            f"<g><title>{terms.confidence} {100 * row['low']:.0f} to {100 * row['high']:.0f} %: {row['images']} "
            f"{terms.counted}, {100 * row['accuracy']:.1f} % {terms.came_true}, "
            f"mean {terms.confidence} {100 * row['confidence']:.1f} %</title>"
            f'<rect class="main" x="{left:.1f}" y="{right:.1f}" width="{width:.1f}" height="{bottom - right:.1f}"/>'
            f'<line class="mark" x1="{left:.1f}" y1="{sure:.1f}" x2="{left + width:.1f}" y2="{sure:.1f}"/>'
            f'<rect class="soft" x="{left:.1f}" y="{floor - count:.1f}" width="{width:.1f}" height="{count:.1f}"/>'
            "</g>"
        )
    parts.append(f'<line class="axis" x1="{_LEFT}" y1="{floor}" x2="{_RIGHT}" y2="{floor}"/>')
    parts += [_text(_x(share), floor + 14, f"{100 * share:.0f}", "middle") for share in (0, 0.25, 0.5, 0.75, 1)]
    parts.append(_text((_LEFT + _RIGHT) / 2, floor + 30, f"{terms.confidence}, %", "middle"))
    parts.append(_text(_LEFT - 8, floor - height + 4, str(most), "end"))
    parts.append(_text(_LEFT - 8, floor, "0", "end"))
    parts.append(_sideways(_TOP + (bottom - _TOP) / 2, f"{terms.accuracy}, %"))
    parts.append(_sideways(floor - height / 2, terms.counted))
    return _figure(floor + 38, "reliability diagram", parts)


def curves_chart(epochs: Sequence[float], curves: Mapping[str, Sequence[float]], unit: str, best: float) -> str:
    """Lines over epochs.

    Args:
        epochs: numbers of the epochs, rising.
        curves: class of the line in the page's style (``main``, ``gap``) → its values.
        unit: of the values, for the axis.
        best: the epoch that is marked.
    """
    bottom = 210
    values = [value for line in curves.values() for value in line]
    ticks = _ticks(min(values), max(values))
    low, high = ticks[0], ticks[-1]
    digits = max(0, -math.floor(math.log10(ticks[1] - ticks[0])))
    parts = [_grid(bottom, [((tick - low) / (high - low), f"{tick:.{digits}f}") for tick in ticks])]
    first, span = epochs[0], max(epochs[-1] - epochs[0], 1)
    places = [_x(0.02 + 0.96 * (epoch - first) / span) for epoch in epochs]
    for place, epoch in zip(places, epochs, strict=True):
        if epoch == best:
            parts.append(f'<line class="ideal" x1="{place:.1f}" y1="{_TOP}" x2="{place:.1f}" y2="{bottom}"/>')
    for name, line in curves.items():
        heights = [bottom - (bottom - _TOP) * (value - low) / (high - low) for value in line]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(places, heights, strict=True))
        parts.append(f'<polyline class="line {name}" points="{points}"/>')
        if len(places) <= 40:
            parts += [
                f'<circle class="{name}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"><title>epoch {epoch}: {value:.4g}</title>'
                "</circle>"
                for x, y, epoch, value in zip(places, heights, epochs, line, strict=True)
            ]
    step = max(1, math.ceil(len(epochs) / 8))
    parts += [
        _text(place, bottom + 14, f"{epoch}", "middle")
        for place, epoch in list(zip(places, epochs, strict=True))[::step]
    ]
    parts.append(_text((_LEFT + _RIGHT) / 2, bottom + 30, "epoch", "middle"))
    parts.append(_sideways(_TOP + (bottom - _TOP) / 2, unit))
    return _figure(bottom + 38, f"{unit} by epoch", parts)


def _x(share: float) -> float:
    return _LEFT + share * (_RIGHT - _LEFT)


def _grid(bottom: float, ticks: Sequence[tuple[float, str]]) -> str:
    """Horizontal lines at shares of the height, with what stands beside them."""
    lines = []
    for share, label in ticks:
        y = bottom - share * (bottom - _TOP)
        lines.append(f'<line class="axis" x1="{_LEFT}" y1="{y:.1f}" x2="{_RIGHT}" y2="{y:.1f}"/>')
        lines.append(_text(_LEFT - 8, y + 4, label, "end"))
    return "".join(lines)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _sideways(y: float, text: str) -> str:
    return f'<text x="10" y="{y:.1f}" text-anchor="middle" transform="rotate(-90 10 {y:.1f})">{text}</text>'


def _figure(height: float, label: str, parts: Sequence[str]) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{label}">'
        f"{''.join(parts)}</svg>"
    )


def _ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers that take ``low`` and ``high`` between them."""
    span = max(high - low, 1e-3 * max(abs(high), 1))
    rough = span / 4
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(scale * factor for factor in (1, 2, 5, 10) if scale * factor >= rough)
    first, last = math.floor(low / step), max(math.ceil(high / step), math.floor(low / step) + 1)
    return [step * number for number in range(first, last + 1)]
