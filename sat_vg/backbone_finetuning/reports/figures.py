"""Figures from plain arrays: confusion matrices, grids of images, learning curves."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

_MAX_NAMED_CLASSES = 60  # more names than this cannot be read on one figure
_MAX_NUMBERED_CLASSES = 25


def draw_confusion_matrix(
    confusion: np.ndarray, class_names: Sequence[str], images: str = "validation images"
) -> Figure:
    """A confusion matrix, coloured by the share of each true class, with counts where there is room.

    Args:
        confusion: ``[num_classes, num_classes]`` counts; rows are true classes, columns predictions.
        class_names: in the order of rows and columns.
        images: what was counted, for the title.
    """
    count = len(class_names)
    side = float(np.clip(2.5 + 0.34 * count, 5, 22))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    if count <= _MAX_NAMED_CLASSES:
        names = [plain(name) for name in class_names]
        axes.set_xticks(range(count), names, rotation=90 if count > 6 else 45, ha="right" if count <= 6 else "center")
        axes.set_yticks(range(count), names)
    if count <= _MAX_NUMBERED_CLASSES:
        for row, column in zip(*np.nonzero(confusion), strict=True):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(confusion[row, column]), ha="center", va="center", fontsize=7, color=colour)
    accuracy = confusion.trace() / max(confusion.sum(), 1)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.set_title(f"{confusion.sum()} {images}, {100 * accuracy:.2f} % right")
    return figure


def draw_image_grid(images: np.ndarray, titles: Sequence[str], heading: str, columns: int = 8) -> Figure:
    """A grid of images with a title over each.

    Args:
        images: uint8 ``[N, H, W, 3]``.
        titles: N texts.
        heading: over the whole figure.
        columns: images in a row.
    """
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.5 * columns, 1.7 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, image, title in zip(grid, images, titles, strict=False):
        axes.imshow(image)
        axes.set_title(plain(title), fontsize=8)
    figure.suptitle(plain(heading, limit=200), fontsize=10)
    return figure


def draw_learning_curves(epochs: Sequence[Mapping[str, float]]) -> Figure:
    """Losses and validation accuracy by epoch.

    Args:
        epochs: the entries that end epochs, with ``epoch``, ``train_loss``, ``val_loss``, ``val_accuracy``.
    """
    numbers = [entry["epoch"] for entry in epochs]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    losses, accuracy = figure.subplots(1, 2)
    for name in ("train_loss", "val_loss"):
        losses.plot(numbers, [entry[name] for entry in epochs], marker="o", markersize=3, label=name)
    losses.set(xlabel="epoch", ylabel="loss")
    losses.legend()
    shares = [100 * entry["val_accuracy"] for entry in epochs]
    accuracy.plot(numbers, shares, marker="o", markersize=3, color="tab:green")
    best = int(np.argmax(shares))
    accuracy.set_title(f"best: {shares[best]:.2f} % in epoch {numbers[best]}", fontsize=10)
    accuracy.set(xlabel="epoch", ylabel="validation accuracy, %")
    for axes in (losses, accuracy):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def plain(text: str, limit: int = 28) -> str:
    """A text that matplotlib shows as it is: no formulas, no control characters, not too long."""
    shown = "".join(c if c.isprintable() else "?" for c in text).replace("$", r"\$")
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"
