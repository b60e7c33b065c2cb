"""Class rasters: what windows say of each pixel, written as GeoTIFF, GeoJSON or a picture, block by block."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray

from sat_vg.backbone_finetuning.commands.output_folder import explaining_writing
from sat_vg.backbone_finetuning.data.reading.gdal import require_rasterio
from sat_vg.backbone_finetuning.data.windows.opened import valid_pixels
from sat_vg.backbone_finetuning.data.windows.paths import starts
from sat_vg.backbone_finetuning.data.windows.scene import Scene, Window, rasterio_window
from sat_vg.backbone_finetuning.utils.safe_files import folder_aside, sync

_BLOCK = 512
_COLOURS = (("tab10", 10), ("Set3", 12), ("tab20b", 20))
Shares = NDArray[np.float32]


@contextmanager
def files_aside(target: Path, others: Sequence[Path] = ()) -> Iterator[dict[Path, Path]]:
    """Files that appear together once all are written: the others first, ``target`` last.

    Yields:
        For each of them where to write it; what was not written does not appear.

    Raises:
        WriteError: the folder cannot be written to.
    """
    with (
        explaining_writing(f"{str(target)!r} cannot be written", "; make room there"),
        folder_aside(target) as folder,
    ):
        aside = {path: folder / path.name for path in (*others, target)}
        yield aside
        for path, written in aside.items():
            if written.exists():
                sync(written)
                written.replace(path)
        sync(target.parent)


def colours_of(count: int) -> dict[int, tuple[int, int, int, int]]:
    """A colour table: 0 is transparent, the classes from 1 have colours that are told apart easily."""
    base = [colormaps[name](place)[:3] for name, size in _COLOURS for place in range(size)]
    table = {0: (0, 0, 0, 0)}
    for number in range(count):
        red, green, blue = (round(255 * part) for part in base[number % len(base)])
        table[number + 1] = (red, green, blue, 255)
    return table


@dataclass(frozen=True)
class WindowShares:
    """Probabilities of the classes in each window of a grid over a scene.

    A pixel has the mean of all windows that cover it. As the same windows cover all pixels between two edges of
    windows, means are computed for these cells.
    """

    scene: Scene
    size: int  # of a window
    stride: int  # from one window to the next
    values: Shares  # [rows, columns, classes]; NaN where a window has no pixel

    @cached_property
    def _axes(self) -> list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
        """For rows and columns: first pixel of each cell and the end, first window over it, and the one behind."""
        axes = []
        for length in (self.scene.height, self.scene.width):
            first = np.array(starts(length, self.size, self.stride))
            edges = np.unique([*first, *(first + self.size)])
            below = np.searchsorted(first + self.size, edges[:-1], "right")
            above = np.searchsorted(first, edges[:-1], "right")
            axes.append((edges, below, above))
        return axes

    def _means(self, cell: int) -> Shares:
        """Means of a row of cells ``[cells, classes]``; NaN where no window is."""
        (_, first, end), (_, left, right) = self._axes
        windows = self.values[first[cell] : end[cell]].astype(np.float64)
        there = np.isfinite(windows[..., :1])
        sums = np.concatenate([np.where(there, windows, 0), there], axis=-1).sum(axis=0)
        below = np.concatenate([np.zeros((1, sums.shape[1])), np.cumsum(sums, axis=0)])
        found = below[right] - below[left]
        with np.errstate(invalid="ignore", divide="ignore"):
            means: Shares = (found[:, :-1] / np.where(found[:, -1:] > 0.5, found[:, -1:], np.nan)).astype(np.float32)
        return means

    def rows(self, pixels: NDArray[np.int64]) -> Iterator[tuple[Shares, NDArray[np.intp]]]:
        """For ascending rows of pixels, a group for each row of cells: its means, and places in ``pixels``."""
        cells = np.searchsorted(self._axes[0][0], pixels, "right") - 1
        for cell in np.unique(cells):
            yield self._means(int(cell)), np.flatnonzero(cells == cell)

    def cells_of(self, columns: NDArray[np.int64]) -> NDArray[np.intp]:
        """The cell, along a row, in which each column of pixels lies."""
        return np.asarray(np.searchsorted(self._axes[1][0], columns, "right") - 1, np.intp)

    def classes_at(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.uint16]:
        """Number of the likeliest class from 1 at some rows x columns of pixels; 0 where no window is."""
        found = np.zeros((len(rows), len(columns)), np.uint16)
        cells = self.cells_of(columns)
        for means, places in self.rows(rows):
            found[places] = likeliest(means)[cells]
        return found


def likeliest(means: Shares) -> NDArray[np.uint16]:
    """Number of the likeliest class from 1 ``[N]`` by probabilities ``[N, classes]``; 0 where these are NaN."""
    there = np.isfinite(means[:, 0])
    return np.where(there, np.nan_to_num(means, nan=-1).argmax(axis=1) + 1, 0).astype(np.uint16)


def write_class_raster(path: Path, shares: WindowShares, names: Sequence[str], tags: Mapping[str, str]) -> list[int]:
    """Write the likeliest classes, numbered from 1, as a cloud-optimised GeoTIFF on the scene's grid.

    0, the nodata value, is no class. Returns how many pixels have no class, and each of the classes.
    """
    dtype = "uint8" if len(names) < 256 else "uint16"
    counts = np.zeros(len(names) + 1, np.int64)
    columns = shares.cells_of(np.arange(shares.scene.width))
    profile = {"count": 1, "dtype": dtype, "nodata": 0}
    with _optimised(path, shares.scene, profile, "mode") as file:
        file.write_colormap(1, colours_of(len(names)))
        file.set_band_description(1, "class")
        file.update_tags(**{f"CLASS_{number}": name for number, name in enumerate(names, 1)}, **tags)
        for window, rows in _strips(shares.scene):
            strip = np.zeros((len(rows), shares.scene.width), dtype)
            for means, places in shares.rows(rows):
                strip[places] = likeliest(means)[columns]
            valid = valid_pixels(shares.scene.path, window)
            if valid is not None:
                strip[~valid] = 0
            counts += np.bincount(strip.reshape(-1), minlength=len(counts))
            file.write(strip, 1, window=rasterio_window(window))
    return [int(count) for count in counts]


def write_probabilities(path: Path, shares: WindowShares, names: Sequence[str]) -> None:
    """Write a float32 band with the probability of each class; NaN, the nodata value, where there is none."""
    columns = shares.cells_of(np.arange(shares.scene.width))
    profile = {"count": len(names), "dtype": "float32", "nodata": float("nan"), "interleave": "band"}
    with _optimised(path, shares.scene, profile, "average") as file:
        for number, name in enumerate(names, 1):
            file.set_band_description(number, name)
        for window, rows in _strips(shares.scene):
            groups = list(shares.rows(rows))
            valid = valid_pixels(shares.scene.path, window)
            for number in range(len(names)):
                strip = np.full((len(rows), shares.scene.width), np.nan, np.float32)
                for means, places in groups:
                    strip[places] = means[columns, number]
                if valid is not None:
                    strip[~valid] = np.nan
                file.write(strip, number + 1, window=rasterio_window(window))


def _strips(scene: Scene) -> Iterator[tuple[Window, NDArray[np.int64]]]:
    for row in range(0, scene.height, _BLOCK):
        height = min(_BLOCK, scene.height - row)
        yield Window(0, row, scene.width, height), np.arange(row, row + height)


@contextmanager
def _optimised(path: Path, scene: Scene, profile: Mapping[str, Any], resampling: str) -> Iterator[Any]:
    """A raster on the scene's grid to write to, which becomes a cloud-optimised GeoTIFF at the end."""
    rasterio = require_rasterio()
    plain = path.with_name(f"{path.name}.tmp")
    layout = {"tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK, "compress": "deflate", "bigtiff": "if_safer"}
    with rasterio.open(
        plain, "w", driver="GTiff", width=scene.width, height=scene.height, crs=scene.crs,
        transform=rasterio.Affine(*scene.transform), **layout, **profile,
    ) as file:  # fmt: skip
        yield file
    options = {"blocksize": _BLOCK, "compress": "deflate", "overview_resampling": resampling, "bigtiff": "if_safer"}
    import_module("rasterio.shutil").copy(plain, path, driver="COG", **options)
    plain.unlink()
