"""A drawn scene with coordinates and its truth, for trying things out without data.

    python -m sat_vg.scenes.drawn scene.tif --size 2048

Five classes lie in regions of some hundred pixels. What tells them apart everywhere is texture; their colours drift
with place, so that windows beside each other look alike and those of a far part look different. With faint textures
(``texture=0.02, drift=90``) little but colour is left to learn from, which holds nearby and nowhere else. A pixel
depends on the options and its place only. The scene is drawn and written block by block.
"""

import os
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from sat_vg.backbone_finetuning.commands.command_line import main_of
from sat_vg.backbone_finetuning.configs.ranges import PositiveFloat, Range, WholeNumber
from sat_vg.backbone_finetuning.data.reading.gdal import require_rasterio
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.home_paths import expand_home
from sat_vg.backbone_finetuning.utils.seeding import Purpose, derive_seed, numpy_generator
from sat_vg.backbone_finetuning.utils.terminal import progress, say
from sat_vg.scenes.geojson import crs_named, write_regions
from sat_vg.scenes.rasters import colours_of, files_aside

CLASSES = ("bare", "field", "forest", "town", "water")
_BASES = np.array([(140, 122, 96), (112, 122, 74), (66, 88, 56), (122, 116, 112), (52, 80, 98)], np.float32)
_BLOCK = 512
_CELL = 8  # pixels of the truth's grid
_REGION = 320  # pixels across a region
_DRIFT_CELL = 500  # pixels over which colours drift
_DEGREES_OF_A_METRE = 1 / 111_320

Values = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class DrawOptions:
    """Options of ``python -m sat_vg.scenes.drawn``."""

    out: str = "scene.tif"
    """The GeoTIFF to write; labels and truth go beside it: scene.geojson and scene.truth.tif."""
    size: Annotated[int, Range(lowest=64, highest=40_000, example=2048)] = 2048
    """Width and height in pixels."""
    crs: str = "EPSG:32632"
    """Coordinate reference system, such as EPSG:32632 (UTM) or EPSG:4326 (degrees)."""
    resolution: PositiveFloat = 10.0
    """Metres to a pixel."""
    texture: Annotated[float, Range(lowest=0, highest=2, example=1.0)] = 1.0
    """Strength of the textures, which tell the classes apart everywhere."""
    drift: Annotated[float, Range(lowest=0, highest=255, example=42.0)] = 42.0
    """Grey levels by which colours drift with place; by default as far as the classes are apart."""
    seed: WholeNumber = 0
    """Which scene."""


def draw(options: DrawOptions) -> Path:
    """Draw a scene, its labels and its truth, and say so.

    The scene is a tiled RGB GeoTIFF of 8 bits, compressed as JPEG; ``STEM.geojson`` holds its regions as polygons in
    longitude and latitude with the property ``class``; ``STEM.truth.tif`` their numbers from 1, on the scene's grid.

    Returns:
        The path of the scene.

    Raises:
        ConfigError: there is no such CRS, or a file lies there already.
        WriteError: a file cannot be written.
    """
    target = expand_home(options.out)
    labels, truth = target.with_suffix(".geojson"), target.with_name(f"{target.stem}.truth.tif")
    if target.suffix.lower() not in (".tif", ".tiff"):
        raise ConfigError(f"--out {options.out!r}: a GeoTIFF is written; for example scene.tif")
    for path in (target, labels, truth):
        if os.path.lexists(path):
            raise ConfigError(f"--out {options.out!r}: {str(path)!r} exists; choose another, or remove it")
    crs, affine = crs_named(options.crs, "--crs"), require_rasterio().Affine
    pixel = options.resolution * (_DEGREES_OF_A_METRE if crs.is_geographic else 1)
    corner = (9.0, 48.0) if crs.is_geographic else (500_000.0, 5_300_000.0)
    profile = {
        "driver": "GTiff", "width": options.size, "height": options.size, "dtype": "uint8", "crs": crs, "tiled": True,
        "blockxsize": _BLOCK, "blockysize": _BLOCK, "transform": affine(pixel, 0, corner[0], 0, -pixel, corner[1]),
    }  # fmt: skip
    drawing = _Drawing(options)
    classes = drawing.classes()
    classes = np.pad(classes, (0, -len(classes) % (_BLOCK // _CELL)))  # to whole blocks; 0 is no class
    with files_aside(target, [labels, truth]) as aside:
        _write_scene(aside[target], profile, drawing, classes)
        _write_truth(aside[truth], profile, classes)
        place = affine(pixel * _CELL, 0, corner[0], 0, -pixel * _CELL, corner[1])
        write_regions(aside[labels], classes, place, crs, CLASSES)
    say(
        f"drawn: {target} ({options.size} x {options.size} pixels of {options.resolution:g} m in {options.crs}; "
        f"classes {', '.join(CLASSES)}), {labels} and {truth.name}"
    )
    return target


class _Drawing:
    """The random fields of a scene."""

    def __init__(self, options: DrawOptions) -> None:
        self.size, self.seed, self.texture = options.size, options.seed, options.texture
        rng = numpy_generator(derive_seed(self.seed, Purpose.SCENES))
        self._regions: list[tuple[Values, int]] = [
            (rng.normal(0, weight, (len(CLASSES), *_lattice(self.size, cell))).astype(np.float32), cell)
            for weight, cell in ((1.0, _REGION), (0.4, _REGION // 3))
        ]
        drifts = _lattice(self.size, _DRIFT_CELL)
        self._colours = rng.uniform(-options.drift, options.drift, (len(CLASSES), 3, *drifts)).astype(np.float32)

    def classes(self) -> NDArray[np.uint8]:
        """Number of the class from 1, of each cell of ``_CELL`` pixels."""
        count = -(-self.size // _CELL)
        centres = (np.arange(count) + 0.5) * _CELL
        best, found = np.full((count, count), -np.inf, np.float32), np.zeros((count, count), np.uint8)
        for number in range(len(CLASSES)):
            fields = [_smooth(lattice[number], centres, centres, cell) for lattice, cell in self._regions]
            field = np.sum(fields, axis=0)
            found[field > best] = number + 1
            best = np.maximum(best, field)
        return found

    def block(self, row: int, column: int, classes: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Pixels ``[3, _BLOCK, _BLOCK]`` of the block whose first pixel is given; ``classes`` are of its pixels."""
        rng = numpy_generator(derive_seed(self.seed, Purpose.SCENES, 1, row, column))
        y, x = (np.arange(start, start + _BLOCK) + 0.5 for start in (row, column))
        grain = rng.normal(0, 1, (_BLOCK, _BLOCK)).astype(np.float32)
        blobs = [_blocky(rng, side) for side in (2, 6, 10)]
        angle = rng.uniform(0, np.pi)
        stripes = np.sin((np.cos(angle) * x + np.sin(angle) * y[:, None]) * (2 * np.pi / 9)).astype(np.float32)
        textures = (
            12 * blobs[2] + 4 * grain, 20 * stripes + 5 * grain, 22 * blobs[0] + 5 * grain, 34 * blobs[1], 3 * grain,
        )  # fmt: skip
        image = np.zeros((3, _BLOCK, _BLOCK), np.float32)
        for number, texture in enumerate(textures):
            here = classes == number + 1
            if here.any():
                for band in range(3):
                    drift = _smooth(self._colours[number, band], y, x, _DRIFT_CELL)
                    image[band][here] = (_BASES[number, band] + drift + self.texture * texture)[here]
        return np.clip(image, 0, 255).astype(np.uint8)


def _lattice(size: int, cell: int) -> tuple[int, int]:
    return -(-size // cell) + 3, -(-size // cell) + 3


def _smooth(lattice: Values, y: NDArray[Any], x: NDArray[Any], cell: int) -> Values:
    """A lattice of values ``cell`` pixels apart, at the places ``y`` x ``x``: smooth between them."""
    parts = []
    for axis, places in enumerate((y, x)):
        below = np.floor(places / cell).astype(np.intp)
        share = (places / cell - below).astype(np.float32)
        share = share * share * (3 - 2 * share)
        parts.append((below, share if axis else share[:, None]))
    (row, down), (column, right) = parts
    rows = lattice[row] * (1 - down) + lattice[row + 1] * down
    return np.asarray(rows[:, column] * (1 - right) + rows[:, column + 1] * right, np.float32)


def _blocky(rng: np.random.Generator, side: int) -> Values:
    count = -(-_BLOCK // side)
    values = rng.normal(0, 1, (count, count)).astype(np.float32)
    blocks: Values = values.repeat(side, 0)[:_BLOCK].repeat(side, 1)[:, :_BLOCK]
    return blocks


def _write_scene(path: Path, profile: dict[str, Any], drawing: _Drawing, classes: NDArray[np.uint8]) -> None:
    jpeg = {"count": 3, "compress": "jpeg", "jpeg_quality": 85, "photometric": "ycbcr", "interleave": "pixel"}
    starts = range(0, drawing.size, _BLOCK)
    window = import_module("rasterio.windows").Window
    with (
        require_rasterio().open(path, "w", **profile, **jpeg) as file,
        progress(total=len(starts) ** 2, desc="drawing", unit="block") as bar,
    ):
        for row in starts:
            for column in starts:
                high, wide = (min(_BLOCK, drawing.size - start) for start in (row, column))
                pixels = drawing.block(row, column, _pixels_of(classes, row, column))[:, :high, :wide]
                file.write(pixels, window=window(column, row, wide, high))
                bar.update()


def _write_truth(path: Path, profile: dict[str, Any], classes: NDArray[np.uint8]) -> None:
    size = profile["width"]
    window = import_module("rasterio.windows").Window
    with require_rasterio().open(path, "w", **profile, count=1, compress="deflate", nodata=0) as file:
        file.write_colormap(1, colours_of(len(CLASSES)))
        file.update_tags(**{f"CLASS_{number}": name for number, name in enumerate(CLASSES, 1)})
        for row in range(0, size, _BLOCK):
            high = min(_BLOCK, size - row)
            cells = classes[row // _CELL : (row + _BLOCK) // _CELL]
            pixels = cells.repeat(_CELL, 0).repeat(_CELL, 1)[:high, :size]
            file.write(pixels, 1, window=window(0, row, size, high))


def _pixels_of(classes: NDArray[np.uint8], row: int, column: int) -> NDArray[np.uint8]:
    """The classes of a block's pixels."""
    cells = classes[row // _CELL : (row + _BLOCK) // _CELL, column // _CELL : (column + _BLOCK) // _CELL]
    return cells.repeat(_CELL, 0).repeat(_CELL, 1)


_DESCRIPTION = """\
Draw a scene with coordinates, the polygons of its classes, and its truth.

  %(prog)s scene.tif --size 2048

writes scene.tif, scene.geojson and scene.truth.tif."""
main = main_of("draw", DrawOptions, draw, _DESCRIPTION, {"out": "OUT"})

if __name__ == "__main__":
    raise SystemExit(main(prog="python -m sat_vg.scenes.drawn"))
