"""Learning curves by matplotlib, and what its figures share.

For reports; the record of a run has its pictures from ``record_pictures``, without matplotlib.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sat_vg.backbone_finetuning.reports.record_pictures import measure_of
from sat_vg.backbone_finetuning.utils.printable import shortened


def draw_learning_curves(epochs: Sequence[Mapping[str, float]], marked: float) -> Figure:
    """Losses, and below them validation accuracy or mean average precision, by epoch; a dashed line at ``marked``."""
    numbers = [entry["epoch"] for entry in epochs]
    figure = Figure(figsize=(5, 5.6), layout="constrained")
    losses, accuracy = figure.subplots(2, 1)
    for name in ("train_loss", "val_loss"):
        losses.plot(numbers, [entry[name] for entry in epochs], marker="o", markersize=3, label=name)
    losses.set(xlabel="epoch", ylabel="loss")
    losses.legend()
    key, measure = measure_of(epochs[0])
    shares = [100 * entry[key] for entry in epochs]
    accuracy.plot(numbers, shares, marker="o", markersize=3, color="tab:green")
    best = int(np.argmax(shares))
    accuracy.set_title(f"best: {shares[best]:.2f} % in epoch {numbers[best]}", fontsize=10)
    accuracy.set(xlabel="epoch", ylabel=f"validation {measure}, %")
    for axes in (losses, accuracy):
        axes.axvline(marked, color="0.4", linewidth=1, linestyle="--", zorder=0)
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))  # no ticks between two epochs
    return figure


def add_grid(axes: Axes, axis: Literal["both", "x"] = "both") -> None:
    """A light grid behind the bars, and no frame at the top and on the right."""
    axes.grid(axis=axis, alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def plain(text: str, limit: int = 28) -> str:
    """A text that matplotlib shows as it is: no formulas, no control characters, not too long."""
    return shortened("".join(c if c.isprintable() else "?" for c in text).replace("$", r"\$"), limit)
