"""GeoTIFFs of any number of bands: the chosen ones, in the order that the model sees them, as float32 values.

Read with rasterio, which brings GDAL (the ``[geo]`` extra). A file is taken into memory first, and GDAL is shown
nothing but its bytes, and no other format than TIFF: some of GDAL's formats name other files, or hosts to fetch from.
So what lies beside a file (``.aux.xml``, ``.msk``, ``.ovr``) is not looked at.

Scale and offset tags are applied: the model sees value * scale + offset, since files of one data set may have
different ones (Sentinel-2 before and after 2022). A value is missing where it is the band's nodata value or the
``nodata`` of the run, NaN or infinite, where the file's mask band is 0, or where its alpha band is 0 (unless that
band was chosen, or its values are no transparency: four 8-bit bands are often marked as RGB with alpha where the
fourth is near infrared). Missing are also fill values that no tag names: magnitudes of 1e30 and above, and the usual
fill values where they are far from all other values of the image.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sat_vg.backbone_finetuning.configs.band_choice import BandChoice, parse_band
from sat_vg.backbone_finetuning.data.checks.image_traits import Traits
from sat_vg.backbone_finetuning.data.reading.decoding import (
    RGB_DECODER,
    Decoder,
    Picture,
    image_or_reason,
    opened,
    read_image,
)
from sat_vg.backbone_finetuning.data.reading.fill_values import equals, holds, take_out_fills
from sat_vg.backbone_finetuning.data.reading.gdal_files import require_rasterio, with_gdal
from sat_vg.backbone_finetuning.data.reading.gdal_pictures import is_transparency
from sat_vg.backbone_finetuning.data.reading.large_images import (
    one_large_at_a_time,
    refuse_hollow,
    step_within,
    tell_reduced,
)
from sat_vg.backbone_finetuning.data.reading.levels import decoder_of_levels
from sat_vg.backbone_finetuning.data.reading.unreadable import Unreadable
from sat_vg.backbone_finetuning.utils.errors import ConfigError, DataError
from sat_vg.backbone_finetuning.utils.preprocessing import RGB, BandFiles, Preprocessing
from sat_vg.backbone_finetuning.utils.printable import one_line

_MOST_VALUES = 2**26  # of the chosen bands: 256 MiB as float32; of larger images rows and columns are left out
_MOST_VALUES_IN_FILE = 2**32
_MOST_BLOCK_BYTES = 2**30  # what GDAL unpacks at a time
_FARTHEST = 1000.0  # deviations from the mean: what lies beyond would be all that a batch norm sees
_LISTED = 20
# What bands of this name are in the files of Sentinel-2 and of HLS.
_COLOURS = {**{colour: colour for colour in (*RGB, "nir")}, "b02": "blue", "b03": "green", "b04": "red"}
_LONGEST_NAME = 60  # characters


class ChosenBands(NamedTuple):
    """The bands of a run.

    Attributes:
        names: what the model calls them.
        files: where they lie.
        description: a line for the user.
        warnings: what in the names and numbers contradicts the files' descriptions, a line each.
    """

    names: tuple[str, ...]
    files: BandFiles
    description: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Header:
    """What a file says of itself; ``nodata``, ``descriptions`` and ``scaling`` (scale and offset) by band."""

    count: int
    dtype: str
    width: int
    height: int
    nodata: tuple[float | None, ...]
    descriptions: tuple[str | None, ...]
    scaling: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class GeoReader:
    """Reads the bands of GeoTIFFs.

    Attributes:
        files: what the files are like; others are refused.
        fill: by band, what stands in for missing values; None: they are NaN.
        reach: by band, how far from ``fill`` a value may be; what is farther counts as missing. None: any.
    """

    files: BandFiles
    fill: tuple[float, ...] | None = None
    reach: tuple[float, ...] | None = None

    def read(self, path: str) -> Tensor:
        """The image, float32 ``[C, H, W]``.

        Raises:
            DataError: the file cannot be read, is no such GeoTIFF, or has no value at all.
        """
        return read_image(path, self._decode).pixels

    def read_or_reason(self, path: str) -> Tensor | str:
        """The same, or the reason why the file cannot be read, without its path."""
        picture = self.examine(path)
        return picture if isinstance(picture, str) else picture.pixels

    def examine(self, path: str) -> Picture | str:
        """The same, with what the file says of its values."""
        return image_or_reason(path, self._decode)

    def _decode(self, file: BinaryIO) -> Picture:
        num_bytes = file.seek(0, io.SEEK_END)
        values, traits = with_gdal(file, lambda source: _values_of(source, self.files, num_bytes))
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

    Args:
        preprocessing: of the model.
        marks_missing: missing values of GeoTIFFs are NaN; else they are the mean of their band, which
            normalisation turns into 0.

    Raises:
        ConfigError: it takes GeoTIFFs, and rasterio is not installed.
    """
    if preprocessing.files is None:
        return RGB_DECODER if preprocessing.levels is None else decoder_of_levels(preprocessing.levels)
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
    """How such GeoTIFFs are read; see ``GeoReader``.

    Raises:
        ConfigError: rasterio is not installed.
    """
    rasterio, reader = require_rasterio(), GeoReader(files, fill, reach)
    versions = f"rasterio {rasterio.__version__}, GDAL {rasterio.__gdal_version__}"
    return Decoder(reader.read, reader.read_or_reason, reader.examine, f"{files}, {fill}, {reach}, {versions}")


def find_bands(bands: Sequence[int | str], paths: Sequence[str], nodata: float | None = None) -> ChosenBands:
    """The bands that a configuration names, as the first of the files that can be read has them.

    Args:
        bands: as in the configuration.
        paths: GeoTIFFs.
        nodata: a value that stands for none, beside those that the files name.

    Raises:
        ConfigError: rasterio is not installed, or the files cannot hold ``nodata``.
        DataError: there is no such band, or none of the files is a GeoTIFF.
    """
    require_rasterio()
    first: tuple[str, str] | None = None
    for path in paths:
        try:
            header = opened(path, lambda file: with_gdal(file, _header_of))
            return _choose([parse_band(band) for band in bands], header, path, nodata)
        except Unreadable as problem:
            first = first or (path, problem.reason)
    why = f"the first, {first[0]!r}: {first[1]}" if first else "there are none"
    raise DataError(
        f"bands = {list(bands)}: none of the {len(paths)} training images is a GeoTIFF that can be read ({why}). "
        "Leave bands out for 8-bit RGB images"
    )


def _choose(choices: Sequence[BandChoice], header: _Header, path: str, nodata: float | None) -> ChosenBands:
    for choice in choices:
        if isinstance(choice.source, int) and choice.source > header.count:
            raise DataError(
                f"{path!r} has {_counted(header.count)}, so there is none of number {choice.source}; "
                f"{_known(header.descriptions)}"
            )
    numbers = [_number_of(choice.source, header.descriptions) for choice in choices]
    if None in numbers:
        wanted = choices[numbers.index(None)].source
        raise DataError(f"{path!r} has no single band that is called {wanted!r}; {_known(header.descriptions)}")
    found = [
        choice.name or _as_name(header.descriptions[number - 1])
        for choice, number in zip(choices, numbers, strict=True)
        if number is not None
    ]
    names = tuple(
        name if choice.name or (name and found.count(name) == 1) else f"band{number}"
        for choice, name, number in zip(choices, found, numbers, strict=True)
    )
    for what, few in (("band", numbers), ("name", names)):
        twice = [one for place, one in enumerate(few) if one in few[:place]]
        if twice:
            raise DataError(
                f"{path!r}: the {what} {twice[0]!r} would come twice; choose every band once, with a name"
            )
    if nodata is not None and not holds(header.dtype, nodata):
        raise ConfigError(
            f"nodata = {nodata:g}: {path!r} holds {header.dtype}, which has no such value; leave it out"
        )
    scaling = [header.scaling[number - 1] for number in numbers if number is not None]
    is_tagged = any(scale != 1 for scale, _ in scaling)
    sources = tuple(choice.source for choice in choices)
    files = BandFiles(sources, header.dtype, header.count, nodata, "tagged" if is_tagged else "plain")
    listed = ", ".join(f"{one_line(name)} ({number})" for name, number in zip(names, numbers, strict=True))
    description = (
        f"bands: {listed} of {header.count}, {header.dtype}, {_about_nodata(header, nodata)}"
        f"{_about_scaling(scaling)}, as {one_line(path)!r} has them"
    )
    return ChosenBands(names, files, description, tuple(_contradictions(choices, header, path)))


def _about_nodata(header: _Header, nodata: float | None) -> str:
    known = sorted({f"{value:g}" for value in (*header.nodata, nodata) if value is not None})
    return f"nodata {' or '.join(known)}" if known else "no nodata value"


def _about_scaling(scaling: Sequence[tuple[float, float]]) -> str:
    pairs = dict.fromkeys(scaling)
    if set(pairs) == {(1.0, 0.0)}:
        return ""
    return ", with " + " or ".join(f"scale {scale:g} and offset {offset:g}" for scale, offset in pairs) + " applied"


def _contradictions(choices: Sequence[BandChoice], header: _Header, path: str) -> list[str]:
    """Names given to bands by number that the file's descriptions give to others."""
    found = []
    for choice in choices:
        if choice.name is None or not isinstance(choice.source, int):
            continue
        name, own = choice.name.casefold(), (header.descriptions[choice.source - 1] or "").strip()
        others = [
            number
            for number, text in enumerate(header.descriptions, 1)
            if number != choice.source and (text or "").strip().casefold() == name
        ]
        is_other_colour = {_COLOURS.get(name), _COLOURS.get(own.casefold())} - {None, _COLOURS.get(name)}
        if own.casefold() != name and (others or (name in _COLOURS and is_other_colour)):
            where = f", and {choice.name!r} its band {others[0]}" if others else ""
            found.append(
                f"bands: {choice.name}={choice.source}, but {path!r} calls its band {choice.source} "
                f"{one_line(own)!r}{where}; check the numbers"
            )
    return found


def _as_name(description: str | None) -> str:
    """A band's description as the model's name of it (Red is red); empty where it has none."""
    text = one_line((description or "").strip())[:_LONGEST_NAME]
    return text.lower() if text.lower() in RGB else text


def _number_of(source: int | str, descriptions: Sequence[str | None]) -> int | None:
    """The number of a band that is named by its description; None where there is none, or more than one."""
    if isinstance(source, int):
        return source
    wanted = source.casefold()
    found = [number for number, one in enumerate(descriptions, 1) if one and one.strip().casefold() == wanted]
    return found[0] if len(found) == 1 else None


def _known(descriptions: Sequence[str | None]) -> str:
    named = [f"{number} {one_line(text)!r}" for number, text in enumerate(descriptions, 1) if text]
    if not named:
        return "its bands have no names, so choose them by their numbers, from 1"
    return f"its bands are {', '.join(named[:_LISTED])}" + (" …" if len(named) > _LISTED else "")


def _counted(count: int) -> str:
    return f"{count} band{'' if count == 1 else 's'}"


def _header_of(source: Any) -> _Header:
    dtypes = set(source.dtypes)
    if len(dtypes) > 1 or np.dtype(source.dtypes[0]).kind not in "uif":
        raise Unreadable(f"its values are {' and '.join(sorted(dtypes))}", "convert it to float32 or integers")
    scaling = tuple(
        (float(scale), float(offset) + 0.0) for scale, offset in zip(source.scales, source.offsets, strict=True)
    )
    return _Header(
        source.count, source.dtypes[0], source.width, source.height, source.nodatavals, source.descriptions, scaling
    )


def _values_of(source: Any, files: BandFiles, num_bytes: int) -> tuple[NDArray[np.float32], Traits]:
    """The values of the chosen bands ``[C, H, W]``, NaN where there is none, and what the file says of them."""
    header = _header_of(source)
    numbers = _numbers_in(header, files)
    scaling = _scaling_of(header, files, numbers)
    step = _bounded_step(source, header, len(numbers), num_bytes)
    shape = (-(-header.height // step), -(-header.width // step))
    with one_large_at_a_time(header.width * header.height * len(numbers)):
        # GDAL takes the nearest pixels, so that no value is mixed with a missing one, or a file's own overviews.
        stored = source.read(numbers, out_shape=(len(numbers), *shape))
        values = _scaled(stored, scaling)
        masked, alpha = _masked(source, numbers, shape)
        for place, number in enumerate(numbers):
            if number in masked:
                values[place][source.read_masks(number, out_shape=shape) == 0] = np.nan
    if files.nodata is not None:
        values[equals(stored, files.nodata)] = np.nan
    values[~np.isfinite(values)] = np.nan
    fills = take_out_fills(stored, values) if files.scaling != "ignored" else ()
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
    )
    return values, traits


def _scaled(stored: NDArray[Any], scaling: Sequence[tuple[float, float]]) -> NDArray[np.float32]:
    with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold becomes infinite, and so missing
        values: NDArray[np.float32] = stored.astype(np.float32)
        for place, (scale, offset) in enumerate(scaling):
            if (scale, offset) != (1.0, 0.0):
                values[place] = stored[place].astype(np.float64) * scale + offset
    return values


def _bounded_step(source: Any, header: _Header, num_bands: int, num_bytes: int) -> int:
    """Each so-manieth row and column is read, so that memory is bounded.

    Raises:
        Unreadable: even listing or unpacking the image would take too much.
    """
    width, height = header.width, header.height
    item_bytes = np.dtype(header.dtype).itemsize
    shape = f"{width} x {height} pixels in {_counted(header.count)}"
    if width * height * header.count > _MOST_VALUES_IN_FILE:
        raise Unreadable(f"it is too large ({shape})", "cut it into smaller tiles")
    refuse_hollow(num_bytes, width, height, header.count * item_bytes)
    block = math.prod(source.block_shapes[0]) * item_bytes * (header.count if _is_by_pixel(source) else 1)
    if block > _MOST_BLOCK_BYTES:
        raise Unreadable(
            f"it is too large ({shape} in blocks of {block // 2**20} MiB, the limit is {_MOST_BLOCK_BYTES // 2**20})",
            "write it in tiles (gdal_translate -co TILED=YES), or cut it into smaller ones",
        )
    step = step_within(width * height * num_bands, _MOST_VALUES)
    if step > 1:
        tell_reduced(width, height, step)
    return step


def _is_by_pixel(source: Any) -> bool:
    return source.interleaving is None or source.interleaving.name == "pixel"


def _scaling_of(header: _Header, files: BandFiles, numbers: Sequence[int]) -> list[tuple[float, float]]:
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
    """Those of the chosen bands whose mask tells what is missing, and what the file's alpha is (see ``Traits``).

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


def _numbers_in(header: _Header, files: BandFiles) -> list[int]:
    """The numbers of the chosen bands in a file.

    Raises:
        Unreadable: it is of another kind than the others.
    """
    apart = "keep images of different kinds apart, or convert them"
    if header.dtype != files.dtype:
        raise Unreadable(
            f"its values are {header.dtype}, and {files.dtype} in the first image of the training", apart
        )
    by_number = any(isinstance(band, int) for band in files.bands)
    if by_number and header.count != files.count:
        reason = f"it has {_counted(header.count)}, and the first image of the training {files.count}"
        raise Unreadable(f"{reason}, so the numbers may mean others", apart)
    numbers = [_number_of(band, header.descriptions) for band in files.bands]
    if None in numbers:
        wanted = files.bands[numbers.index(None)]
        raise Unreadable(f"it has no single band that is called {wanted!r}; {_known(header.descriptions)}", apart)
    return [number for number in numbers if number is not None]
