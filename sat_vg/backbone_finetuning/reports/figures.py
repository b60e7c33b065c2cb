"""Figures from plain arrays, by matplotlib: confusion matrices and learning curves.

For reports; the record of a run has its pictures from ``record_pictures``, without matplotlib.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sat_vg.backbone_finetuning.reports.record_pictures import measure_of
from sat_vg.backbone_finetuning.utils.printable import counted

_MAX_NAMED_CLASSES = 60  # with more, the names are unreadable
_MAX_NUMBERED_CLASSES = 25


def draw_confusion_matrix(confusion: np.ndarray, class_names: Sequence[str], split: str = "validation") -> Figure:
    """A confusion matrix, coloured by the share of each true class, with counts where there is room.

    Rows are as narrow as their names allow, so that names can be read where the figure is shown small.

    Args:
        confusion: ``[num_classes, num_classes]`` counts; rows are true classes, columns predictions.
        class_names: in the order of rows and columns.
        split: name of the images' split, for the title.
    """
    count = len(class_names)
    names = [plain(name) for name in class_names] if count <= _MAX_NAMED_CLASSES else []
    room = 0.5 + 0.085 * max(map(len, names), default=0)  # inches, for the names
    side = float(np.clip(room + 0.2 * count, 5.2, 15))
    has_numbers = count <= _MAX_NUMBERED_CLASSES
    figure = Figure(figsize=(side if has_numbers else side + 1.2, side + 0.4), layout="constrained")
    axes = figure.add_subplot()
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if names:
        axes.set_xticks(range(count), names, rotation=90, fontsize=9)
        axes.set_yticks(range(count), names, fontsize=9)
    if has_numbers:
        digits = len(str(confusion.max()))
        size = min(8.0, 100 * (side - room) / count / digits)  # points; a digit is 0.64 times as wide
        for row, column in zip(*np.nonzero(confusion), strict=True):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(confusion[row, column]), ha="center", va="center", fontsize=size, color=colour)
    else:
        figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    accuracy = confusion.trace() / max(confusion.sum(), 1)
    axes.set(xlabel="predicted class", ylabel="true class")
    figure.suptitle(f"{counted(confusion.sum(), f'{split} image')}, {100 * accuracy:.2f} % correct", fontsize=11)
    return figure


def draw_learning_curves(
    epochs: Sequence[Mapping[str, float]], marked: float | None = None, is_stacked: bool = False
) -> Figure:
    """Losses and validation accuracy, or mean average precision, by epoch.

    Args:
        epochs: the entries that end epochs, with ``epoch``, ``train_loss``, ``val_loss``, ``val_accuracy`` and, where
            an image can have several classes, ``val_map``, which is then drawn.
        marked: the epoch at which a dashed line stands.
        is_stacked: one chart above the other, as narrow screens need it.
    """
    numbers = [entry["epoch"] for entry in epochs]
    figure = Figure(figsize=(5, 5.6) if is_stacked else (6.2, 3), layout="constrained")
    losses, accuracy = figure.subplots(2, 1) if is_stacked else figure.subplots(1, 2)
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
        if marked is not None:
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
    shown = "".join(c if c.isprintable() else "?" for c in text).replace("$", r"\$")
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"
