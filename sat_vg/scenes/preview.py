"""Pictures of scenes: a map over its scene, and a sheet of windows."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from sat_vg.backbone_finetuning.data.windows.opened import read_part
from sat_vg.backbone_finetuning.data.windows.scene import Scene, Window
from sat_vg.backbone_finetuning.reports.figures import plain
from sat_vg.scenes.rasters import WindowShares, colours_of

_LONGEST = 1000  # pixels of a preview
_OPACITY = 0.45
_MOST_NAMED = 30
_IN_A_ROW = 5


def picture_of(scene: Scene, window: Window, longest: int) -> NDArray[np.uint8]:
    """A window as colours ``[h, w, 3]``, at most ``longest`` pixels a side.

    Shown are the first three bands, or the first in grey; of other values than 8 bits what lies from the 2nd to the
    98th percentile.
    """
    step = max(1, -(-max(window.width, window.height) // longest))
    values, valid = read_part(scene.path, window, step)
    bands = values[:3] if len(values) >= 3 else values[[0, 0, 0]]
    if bands.dtype != np.uint8:
        bands = np.stack([_stretched(band, valid) for band in bands.astype(np.float64)])
    picture = np.ascontiguousarray(bands.transpose(1, 2, 0)).astype(np.uint8)
    if valid is not None:
        picture[~valid[: picture.shape[0], : picture.shape[1]]] = 255
    return picture


def _stretched(band: NDArray[np.float64], valid: NDArray[np.bool_] | None) -> NDArray[np.float64]:
    there = np.isfinite(band) if valid is None else np.isfinite(band) & valid[: band.shape[0], : band.shape[1]]
    if not there.any():
        return np.zeros_like(band)
    low, high = np.percentile(band[there], (2, 98))
    spread: NDArray[np.float64] = np.clip((np.nan_to_num(band) - low) / max(high - low, 1e-12), 0, 1) * 255
    return spread


def write_preview(path: Path, shares: WindowShares, names: Sequence[str], counts: Sequence[int]) -> None:
    """Draw the scene under the colours of its classes; ``counts`` are pixels without a class, and of each class."""
    scene = shares.scene
    picture = picture_of(scene, scene.whole, _LONGEST)
    rows, columns = (
        np.minimum(((np.arange(count) + 0.5) * length / count).astype(np.int64), length - 1)
        for count, length in zip(picture.shape[:2], (scene.height, scene.width), strict=True)
    )
    classes = shares.classes_at(rows, columns)
    table = colours_of(len(names))
    colours = np.array([table[number][:3] for number in range(len(names) + 1)], np.float64)
    mixed = np.where((classes > 0)[..., None], (1 - _OPACITY) * picture + _OPACITY * colours[classes], picture)
    height = 6.0 * picture.shape[0] / picture.shape[1]
    figure = Figure(figsize=(8.4, float(np.clip(height, 2.5, 12))), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(mixed.round().astype(np.uint8), interpolation="nearest")
    axes.axis("off")
    total = max(1, sum(counts[1:]))
    there = sorted(range(1, len(counts)), key=lambda number: -counts[number])[:_MOST_NAMED]
    handles = [
        Patch(
            color="#{:02x}{:02x}{:02x}".format(*table[number][:3]),
            label=f"{plain(names[number - 1])} {100 * counts[number] / total:.1f} %",
        )
        for number in there
        if counts[number]
    ]
    if handles:
        axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False)
    figure.savefig(path, format="png", dpi=130, bbox_inches="tight")


def write_sheet(path: Path, pictures: Sequence[NDArray[np.uint8]], titles: Sequence[str], heading: str) -> None:
    """Draw pictures side by side with a title each."""
    rows = math.ceil(len(pictures) / _IN_A_ROW)
    columns = min(_IN_A_ROW, len(pictures))
    figure = Figure(figsize=(max(4.0, 1.9 * columns), 2.15 * rows + 0.4), layout="constrained")
    cells = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in cells:
        axes.axis("off")
    for axes, picture, title in zip(cells, pictures, titles, strict=False):
        axes.imshow(picture)
        axes.set_title("\n".join(plain(line, 30) for line in title.split("\n")), fontsize=7)
    figure.suptitle(plain(heading, 90), fontsize=9)
    figure.savefig(path, format="png", dpi=120)
