"""Deep RGB images as 8 bits by levels that were measured over the training images once, the same for every image.

Of uint16 images that hold values up to 3000 the high byte leaves ten levels. Here the values from the 2nd to the
98th percentile of each band are spread over 0 to 255; what lies beyond becomes 0 or 255. Scale and offset tags are
applied. GDAL reads them, as Pillow gives the high bytes of 16-bit RGB only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sat_vg.backbone_finetuning.data.reading import gdal
from sat_vg.backbone_finetuning.data.reading.decoder import Decoder, Picture, Scaling, Traits
from sat_vg.backbone_finetuning.data.reading.files import read_file
from sat_vg.backbone_finetuning.data.reading.limits import TIFF_MAGIC, require_bounded_tiff
from sat_vg.backbone_finetuning.data.reading.threads import run_in_order
from sat_vg.backbone_finetuning.utils.errors import DataError
from sat_vg.backbone_finetuning.utils.pil_pixels import is_transparency
from sat_vg.backbone_finetuning.utils.preprocessing import RGB, Levels
from sat_vg.backbone_finetuning.utils.terminal import progress
from sat_vg.backbone_finetuning.utils.tiff_layouts import TiffLayout, require_picture, tiff_layout
from sat_vg.backbone_finetuning.utils.unreadable import Unreadable

_PERCENTILES = (2, 98)
_MOST = 2**16
_DRIVERS = ("GTiff", "PNG", "JP2OpenJPEG")


class _Deep(NamedTuple):
    """Values of an image, uint16 ``[H, W, 3]``, where they are missing ``[H, W]``, scale and offset by band."""

    values: NDArray[np.uint16]
    missing: NDArray[np.bool_]
    scaling: Scaling
    traits: Traits


@dataclass(frozen=True)
class LevelsReader(Decoder):
    """Reads deep RGB images as uint8 ``[3, H, W]`` by the levels of a model; missing or transparent is black.

    Raises:
        ConfigError: rasterio is not installed.
    """

    levels: Levels

    def __post_init__(self) -> None:
        gdal.require_rasterio()

    @property
    def key(self) -> str:
        """See ``Decoder``."""
        return f"{self.levels}, {gdal.gdal_versions()}"

    def decode(self, file: BinaryIO) -> Picture:
        """See ``Decoder``."""
        deep = _read(file)
        scale, offset = (np.array(column, np.float64) for column in zip(*deep.scaling, strict=True))
        values = torch.from_numpy(deep.values * scale + offset).permute(2, 0, 1)
        pixels = self.levels.spread(values)
        pixels[:, torch.from_numpy(deep.missing)] = 0
        return Picture(pixels, deep.traits)


def find_levels(paths: Sequence[str]) -> Levels:
    """The levels of training images: percentiles of all values, by band; images that cannot be read are left out.

    Raises:
        ConfigError: rasterio is not installed.
        DataError: none of them has values of more than 8 bits, or a band is the same everywhere.
    """
    gdal.require_rasterio()
    units, reason = None, ""
    for path in paths:
        try:
            units = read_file(path, _read).scaling
            break
        except Unreadable as problem:
            reason = reason or f" (the first, {path!r}: {problem.reason})"
    if units is None:
        raise DataError(
            f"rescale = 'percentile': none of the {len(paths)} training images can be read as deep RGB{reason}; "
            "leave it out for 8-bit images"
        )
    counts = np.zeros((3, _MOST), np.int64)
    bar = progress(total=len(paths), desc="levels", unit="image")
    for bands in run_in_order(paths, lambda path: _count(path, units), bar=bar):
        for band, (values, numbers) in enumerate(bands):
            counts[band, values] += numbers
    bounds = []
    for name, row, (scale, offset) in zip(RGB, counts, units, strict=True):
        below = np.cumsum(row)
        low, high = (int(np.searchsorted(below, below[-1] * share / 100)) for share in _PERCENTILES)
        if low >= high:
            raise DataError(
                f"rescale = 'percentile': nearly all values of the band {name!r} are {low}, so there is nothing to "
                "spread; leave it out"
            )
        bounds.append(sorted((low * scale + offset, high * scale + offset)))
    low_by_band, high_by_band = zip(*bounds, strict=True)
    return Levels(low_by_band, high_by_band)


def _count(path: str, units: Scaling) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """By band the values of an image in the units of the first one, and how often there are."""
    try:
        deep = read_file(path, _read)
    except Unreadable:  # the check names it
        return []
    counted = []
    for band, ((scale, offset), (unit, zero)) in enumerate(zip(deep.scaling, units, strict=True)):
        values, numbers = np.unique(deep.values[..., band][~deep.missing], return_counts=True)
        if (scale, offset) != (unit, zero):
            inside = np.rint((values * scale + offset - zero) / unit).clip(0, _MOST - 1).astype(np.int64)
            values, places = np.unique(inside, return_inverse=True)
            numbers = np.bincount(places, weights=numbers).astype(np.int64)
        counted.append((values.astype(np.int64), numbers))
    return counted


def _read(file: BinaryIO) -> _Deep:
    head = file.read(4)
    pages = require_bounded_tiff(file)
    layout = tiff_layout(file) if head in TIFF_MAGIC else None
    if layout is not None:
        require_picture(layout)
    deep = gdal.with_gdal(file, lambda source, num_bytes: _deep_of(source, num_bytes, layout), _DRIVERS)
    return deep._replace(traits=deep.traits._replace(has_more=pages.are_several))


def _deep_of(source: Any, num_bytes: int, layout: TiffLayout | None) -> _Deep:
    if set(source.dtypes) != {"uint16"}:
        raise _shallow()
    colours = gdal.colours_of(source, num_bytes, inverts=layout is not None and layout.inverts)
    if colours.bits <= 8:
        raise _shallow()
    missing = np.zeros(colours.values.shape[:2], bool)
    kind = ""
    if colours.alpha is not None:
        full = (1 << colours.bits) - 1
        if layout is None or is_transparency(colours.alpha, full) or not layout.is_geodata:
            missing |= colours.alpha == 0
        else:
            kind = "ignored"
    if source.nodata is not None:
        missing |= (colours.values == source.nodata).all(axis=-1)
    scaling = gdal.scaling_of(source)
    scaling = scaling[:3] if len(scaling) >= 3 else scaling[:1] * 3
    if not np.isfinite(scaling).all() or any(scale == 0 for scale, _ in scaling):
        raise Unreadable("its scale and offset tags are no numbers to scale with", "correct these tags")
    listed = scaling if set(scaling) != {(1.0, 0.0)} else ()
    orientation = layout.orientation if layout is not None else 1
    both = gdal.turned(np.concatenate([colours.values, missing[..., None]], axis=-1), orientation)
    blank = gdal.blank_percent(colours.values.transpose(2, 0, 1), missing[None])
    marks = layout.marks if layout is not None else ()
    traits = Traits(f"{colours.bits}-bit", kind, listed, is_scaled=True, blank=blank, marks=marks)
    return _Deep(both[..., :3], both[..., 3].astype(bool), scaling, traits)


def _shallow() -> Unreadable:
    return Unreadable(
        "it is no 16-bit grey or RGB image, as the others that are rescaled",
        "keep images of different kinds apart, or convert them",
    )
