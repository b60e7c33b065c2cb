"""GeoTIFFs of any number of bands: the chosen ones, in the order that the model sees them, as float32 values.

Read with rasterio, which brings GDAL (the ``[geo]`` extra).

Scale and offset tags are applied: the model sees value * scale + offset, since files of one data set may have
different ones (Sentinel-2 before and after 2022). A value is missing where it is the band's nodata value or the
``nodata`` of the run, NaN or infinite, where the file's mask band is 0, or where its alpha band is 0 (unless that
band was chosen, or its values are no transparency: four 8-bit bands are often marked as RGB with alpha where the
fourth is near infrared). Missing are also fill values that no tag names: magnitudes of 1e30 and above, and the usual
fill values where they are far from all other values of the image. Pixels that are 0 in all chosen bands are values,
since dark ground may be; check and training name the files in which they look like nodata.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from sat_vg.backbone_finetuning.data.reading import gdal, limits
from sat_vg.backbone_finetuning.data.reading.bands import Header, header_of, holds, numbers_in
from sat_vg.backbone_finetuning.data.reading.decoder import Decoder, Picture, Traits
from sat_vg.backbone_finetuning.data.reading.decoding import RGB_DECODER
from sat_vg.backbone_finetuning.data.reading.files import PathInArchive
from sat_vg.backbone_finetuning.data.reading.levels import LevelsReader
from sat_vg.backbone_finetuning.utils.pil_pixels import is_transparency, step_within
from sat_vg.backbone_finetuning.utils.preprocessing import BandFiles, Preprocessing
from sat_vg.backbone_finetuning.utils.printable import counted
from sat_vg.backbone_finetuning.utils.unreadable import Unreadable

_MOST_VALUES = 2**26  # of the chosen bands: 256 MiB as float32; of larger images rows and columns are left out
_MOST_VALUES_IN_FILE = 2**32
_MOST_BLOCK_BYTES = 2**30  # what GDAL unpacks at a time
_FARTHEST = 1000.0  # deviations from the mean: what lies beyond would be all that a batch norm sees
_USUAL = (-999.0, -9999.0, -99999.0, -32767.0, -32768.0, 1e20)  # where they are far from all other values
_HIGHEST = ("int16", "uint16", "int32", "uint32")  # of these types the highest value is as usual; 255 is a colour
_BEYOND_ALL = 1e30  # no quantity is as large: -3.4e38, 9.97e36 and the like


@dataclass(frozen=True)
class GeoReader(Decoder):
    """Reads the bands of GeoTIFFs as float32 ``[C, H, W]``."""

    files: BandFiles  # what the files are like; others are refused
    fill: tuple[float, ...] | None = None  # by band, what stands in for missing values; None: they are NaN
    # by band, how far from ``fill`` a value may be; what is farther counts as missing. None: any.
    reach: tuple[float, ...] | None = None

    @property
    def key(self) -> str:
        """See ``Decoder``."""
        return f"{self.files}, {self.fill}, {self.reach}, {gdal.gdal_versions()}"

    def decode(self, file: BinaryIO) -> Picture:
        """See ``Decoder``."""
        pages = limits.require_bounded_tiff(file)
        found = gdal.with_gdal(file, lambda source, num_bytes: _values_of(source, self.files, num_bytes))
        return self._picture(*found).of_several(pages.are_several)

    def _read(self, path: str | Path) -> Picture:
        source = path.dataset() if isinstance(path, PathInArchive) else None
        if source is None:
            return super()._read(path)
        return self._picture(*_values_of(source, self.files, source.num_bytes))

    def _picture(self, values: NDArray[np.float32], traits: Traits) -> Picture:
        """The values with ``fill`` in place of missing ones, which are NaN in ``values``."""
        if self.fill is not None and self.reach is not None:
            middle, reach = (np.array(numbers, np.float32)[:, None, None] for numbers in (self.fill, self.reach))
            with np.errstate(over="ignore"):
                values[np.abs(values - middle) > reach] = np.nan
        missing = np.isnan(values)
        if missing.all():
            raise Unreadable("it has no value: all its pixels are nodata, NaN or masked", "remove it")
        for band, fill in enumerate(self.fill or ()):
            values[band][missing[band]] = fill
        return Picture(torch.from_numpy(values), traits)


def decoder_of(preprocessing: Preprocessing, marks_missing: bool = False) -> Decoder:
    """How the images are read that go with a model.

    With ``marks_missing`` missing values of GeoTIFFs are NaN; else they are the mean of their band, which
    normalisation turns into 0.

    Raises:
        ConfigError: it takes GeoTIFFs, and rasterio is not installed.
    """
    if preprocessing.files is None:
        return RGB_DECODER if preprocessing.levels is None else LevelsReader(preprocessing.levels)
    if marks_missing:
        return decoder_of_files(preprocessing.files)
    fill, reach = (
        tuple(factor * value for value in values)
        for factor, values in (
            (preprocessing.scale, preprocessing.mean),
            (_FARTHEST * preprocessing.scale, preprocessing.std),
        )
    )
    return decoder_of_files(preprocessing.files, fill, reach)


def decoder_of_files(
    files: BandFiles, fill: tuple[float, ...] | None = None, reach: tuple[float, ...] | None = None
) -> Decoder:
    """How such GeoTIFFs are read; see ``GeoReader``. Raises ConfigError where rasterio is not installed."""
    gdal.require_rasterio()
    return GeoReader(files, fill, reach)


def _values_of(source: Any, files: BandFiles, num_bytes: int) -> tuple[NDArray[np.float32], Traits]:
    """The values of the chosen bands ``[C, H, W]``, NaN where there is none, and their traits."""
    header = header_of(source)
    numbers = numbers_in(header, files)
    scaling = _scaling_of(header, files, numbers)
    step = _bounded_step(source, header, len(numbers), num_bytes)
    shape = (-(-header.height // step), -(-header.width // step))
    with limits.one_large_at_a_time(header.width * header.height * len(numbers)):
        # GDAL takes the nearest pixels, so that no value is mixed with a missing one, or a file's own overviews.
        stored = source.read(numbers, out_shape=(len(numbers), *shape))
        values = _scaled(stored, scaling)
        masked, alpha = _masked(source, numbers, shape)
        for place, number in enumerate(numbers):
            if number in masked:
                values[place][source.read_masks(number, out_shape=shape) == 0] = np.nan
    if files.nodata is not None:
        # Floating-point ones to five digits, as a value that was typed has no more.
        is_float = stored.dtype.kind == "f"
        values[np.isclose(stored, files.nodata, rtol=1e-5, atol=0) if is_float else stored == files.nodata] = np.nan
    values[~np.isfinite(values)] = np.nan
    fills = _take_out_fills(stored, values) if files.scaling != "ignored" else ()
    blank = gdal.blank_percent(stored, np.isnan(values))
    by_number = [number for number, band in zip(numbers, files.bands, strict=True) if isinstance(band, int)]
    nodata = tuple(header.nodata[number - 1] for number in numbers)
    traits = Traits(
        header.dtype,
        alpha,
        tuple(scaling) if set(scaling) != {(1.0, 0.0)} else (),
        is_scaled=True,
        nodata=tuple(None if value is None or np.isnan(value) else float(value) for value in nodata),
        names=tuple(header.descriptions[number - 1] for number in by_number),
        fills=fills,
        blank=blank,
    )
    return values, traits


def _scaled(stored: NDArray[Any], scaling: Sequence[tuple[float, float]]) -> NDArray[np.float32]:
    with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold becomes infinite, and so missing
        values: NDArray[np.float32] = stored.astype(np.float32)
        for place, (scale, offset) in enumerate(scaling):
            if (scale, offset) != (1.0, 0.0):
                values[place] = stored[place].astype(np.float64) * scale + offset
    return values


def _bounded_step(source: Any, header: Header, num_bands: int, num_bytes: int) -> int:
    """The step between rows and columns that are read, which bounds the memory.

    Raises:
        Unreadable: even listing or unpacking the image would take too much.
    """
    width, height = header.width, header.height
    shape = f"{width} x {height} pixels in {counted(header.count, 'band')}"
    if width * height * header.count > _MOST_VALUES_IN_FILE:
        raise Unreadable(f"it is too large ({shape})", "cut it into smaller tiles")
    limits.refuse_hollow(num_bytes, width, height, header.count * np.dtype(header.dtype).itemsize)
    block = gdal.block_bytes(source)
    if block > _MOST_BLOCK_BYTES:
        raise Unreadable(
            f"it is too large ({shape} in blocks of {block // 2**20} MiB, the limit is {_MOST_BLOCK_BYTES // 2**20})",
            "write it in tiles (gdal_translate -co TILED=YES), or cut it into smaller ones",
        )
    step = step_within(width * height * num_bands, _MOST_VALUES)
    limits.tell_reduced(width, height, step)
    return step


def _scaling_of(header: Header, files: BandFiles, numbers: Sequence[int]) -> list[tuple[float, float]]:
    """Scale and offset to apply, by chosen band.

    Raises:
        Unreadable: they are no numbers, or of another kind than those of the training's images.
    """
    scaling = [header.scaling[number - 1] for number in numbers]
    if files.scaling == "ignored":
        return [(1.0, 0.0)] * len(numbers)
    for scale, offset in scaling:
        if not (np.isfinite(scale) and np.isfinite(offset)) or scale == 0:
            raise Unreadable(f"its tags say scale {scale:g} and offset {offset:g}", "correct these tags")
    is_tagged = any(scale != 1 for scale, _ in scaling)
    if files.scaling != "applied" and is_tagged != (files.scaling == "tagged"):
        scale, offset = max(scaling, key=lambda pair: pair[0] != 1)
        its, theirs = f"scale {scale:g} and offset {offset:g}", "none"
        if not is_tagged:
            its, theirs = "no scale", "one"
        raise Unreadable(
            f"its tags say {its}, and those of the first image of the training {theirs}, so its values are "
            "in other units",
            "keep images of different kinds apart, or give all of them scale and offset",
        )
    return scaling


def _masked(source: Any, numbers: Sequence[int], shape: tuple[int, int]) -> tuple[list[int], str]:
    """The chosen bands whose mask marks missing values, and the kind of the file's alpha (see ``Traits``).

    An alpha band is no mask where it was chosen, or where its values are no transparency.
    """
    flags = {number: {flag.name for flag in source.mask_flag_enums[number - 1]} for number in numbers}
    masked = [number for number in numbers if "all_valid" not in flags[number]]
    by_alpha = [number for number in masked if "alpha" in flags[number]]
    if not by_alpha:
        return masked, ""
    others = [number for number in masked if number not in by_alpha]
    place = next(number for number, kind in enumerate(source.colorinterp, 1) if kind.name == "alpha")
    if place in numbers:
        return others, ""
    alpha = source.read(place, out_shape=shape)
    full = 1 if alpha.dtype.kind == "f" else np.iinfo(alpha.dtype).max
    is_lossy = str(source.profile.get("compress", "")).lower() in ("jpeg", "ycbcr jpeg", "webp")
    return (masked, "") if is_transparency(alpha, full, is_lossy) else (others, "ignored")


def _take_out_fills(stored: NDArray[Any], values: NDArray[np.float32]) -> tuple[float, ...]:
    """Make fill values that no tag declares NaN in ``values``, which are ``stored`` scaled; returns which they are.

    These are magnitudes of 1e30 and above, and the usual ones (-9999, -32768 …, the highest of deep integers) where
    nothing else in the band is even half as far from 0 on their side.
    """
    found: set[float] = set()
    highest = (float(np.iinfo(stored.dtype).max),) if stored.dtype.name in _HIGHEST else ()
    for band, out in zip(stored, values, strict=True):
        if band.dtype.kind == "f":
            beyond = (np.abs(band) >= _BEYOND_ALL) & np.isfinite(band)
            found.update(np.unique(band[beyond])[:2].astype(float).tolist())
            out[beyond] = np.nan
        for usual in (value for value in (*_USUAL, *highest) if holds(band.dtype, value)):
            fill, there = band.dtype.type(usual), band[~np.isnan(out)]
            if not there.size or fill != (there.min() if usual < 0 else there.max()):
                continue
            others = there[there != fill]
            if not others.size or (others.min() > usual / 2 if usual < 0 else others.max() < usual / 2):
                found.add(usual)
                out[band == fill] = np.nan
    return tuple(sorted(found))
