"""GeoTIFFs of any number of bands: the chosen ones, in the order that the model sees them, as float32 values.

Read with rasterio, which brings GDAL (the ``[geo]`` extra). A file is taken into memory first, and GDAL is shown
nothing but its bytes, and no other format than TIFF: some of GDAL's formats name other files, or hosts to fetch from.
So what lies beside a file (``.aux.xml``, ``.msk``, ``.ovr``) is not looked at.

Values are taken as they stand in the file: scale and offset are not applied, as the normalisation by band undoes
them anyway. A value is missing where it is the band's nodata value, NaN or infinite, where the file's mask band is 0,
or where its alpha band is 0 (unless that band was chosen: four 8-bit bands are often marked as RGB with alpha where
the fourth is near infrared).
"""

import importlib
import io
import logging
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sat_vg.backbone_finetuning.configs.band_choice import BandChoice, parse_band
from sat_vg.backbone_finetuning.data.decoding import (
    RGB_DECODER,
    Decoder,
    T,
    image_or_reason,
    opened,
    read_image,
)
from sat_vg.backbone_finetuning.data.large_images import one_large_at_a_time, refuse_hollow, step_within, tell_reduced
from sat_vg.backbone_finetuning.data.tiff_headers import TIFF_MAGIC, require_bounded_tiff
from sat_vg.backbone_finetuning.data.unreadable import COPY_AGAIN, Unreadable
from sat_vg.backbone_finetuning.utils.errors import ConfigError, DataError
from sat_vg.backbone_finetuning.utils.preprocessing import RGB, BandFiles, Preprocessing
from sat_vg.backbone_finetuning.utils.printable import one_line

_MOST_VALUES = 2**26  # of the chosen bands: 256 MiB as float32; of larger images rows and columns are left out
_MOST_VALUES_IN_FILE = 2**32
_MOST_BLOCK_BYTES = 2**30  # what GDAL unpacks at a time
_MEMORY_FILE = re.compile(r"'?/vsimem/[^\s':,]+'?[:,]?\s*")
_LISTED = 20
_LONGEST_NAME = 60  # characters


class ChosenBands(NamedTuple):
    """The bands of a run.

    Attributes:
        names: what the model calls them.
        files: where they lie.
        description: a line for the user.
    """

    names: tuple[str, ...]
    files: BandFiles
    description: str


@dataclass(frozen=True)
class _Header:
    """What a file says of itself; ``nodata`` and ``descriptions`` by band."""

    count: int
    dtype: str
    width: int
    height: int
    nodata: tuple[float | None, ...]
    descriptions: tuple[str | None, ...]


@dataclass(frozen=True)
class GeoReader:
    """Reads the bands of GeoTIFFs.

    Attributes:
        files: what the files are like; others are refused.
        fill: by band, what stands in for missing values; None: they are NaN.
    """

    files: BandFiles
    fill: tuple[float, ...] | None = None

    def read(self, path: str) -> Tensor:
        """The image, float32 ``[C, H, W]``.

        Raises:
            DataError: the file cannot be read, is no such GeoTIFF, or has no value at all.
        """
        return read_image(path, self._decode)

    def read_or_reason(self, path: str) -> Tensor | str:
        """The same, or the reason why the file cannot be read, without its path."""
        return image_or_reason(path, self._decode)

    def _decode(self, file: BinaryIO) -> Tensor:
        values = _read(file, self.files)
        missing = np.isnan(values)
        if missing.all():
            raise Unreadable("it has no value: all its pixels are nodata, NaN or masked", "remove it")
        for band, fill in enumerate(self.fill or ()):
            values[band][missing[band]] = fill
        return torch.from_numpy(values)


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
        return RGB_DECODER
    fill = None if marks_missing else tuple(preprocessing.scale * value for value in preprocessing.mean)
    return decoder_of_files(preprocessing.files, fill)


def decoder_of_files(files: BandFiles, fill: tuple[float, ...] | None = None) -> Decoder:
    """How such GeoTIFFs are read; ``fill`` by band stands in for missing values, which are NaN without it.

    Raises:
        ConfigError: rasterio is not installed.
    """
    rasterio, reader = require_rasterio(), GeoReader(files, fill)
    versions = f"rasterio {rasterio.__version__}, GDAL {rasterio.__gdal_version__}"
    return Decoder(reader.read, reader.read_or_reason, f"{files}, {fill}, {versions}")


def find_bands(bands: Sequence[int | str], paths: Sequence[str]) -> ChosenBands:
    """The bands that a configuration names, as the first of the files that can be read has them.

    Args:
        bands: as in the configuration.
        paths: GeoTIFFs.

    Raises:
        ConfigError: rasterio is not installed.
        DataError: there is no such band, or none of the files is a GeoTIFF.
    """
    require_rasterio()
    first: tuple[str, str] | None = None
    for path in paths:
        try:
            return _choose([parse_band(band) for band in bands], opened(path, _read_header), path)
        except Unreadable as problem:
            first = first or (path, problem.reason)
    why = f"the first, {first[0]!r}: {first[1]}" if first else "there are none"
    raise DataError(
        f"bands = {list(bands)}: none of the {len(paths)} training images is a GeoTIFF that can be read ({why}). "
        "Leave bands out for 8-bit RGB images"
    )


@cache
def require_rasterio() -> ModuleType:
    """rasterio, imported.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        rasterio = importlib.import_module("rasterio")
    except ImportError as error:
        raise ConfigError(
            f"the bands of GeoTIFFs are read with rasterio, which cannot be imported ({error}); install it with "
            "pip install 'sat_vg[geo]'"
        ) from error
    logging.getLogger("rasterio").setLevel(logging.CRITICAL)  # what matters of GDAL's messages is an error here
    return rasterio


def _choose(choices: Sequence[BandChoice], header: _Header, path: str) -> ChosenBands:
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
    files = BandFiles(tuple(choice.source for choice in choices), header.dtype, header.count)
    nodata = sorted({f"{value:g}" for value in header.nodata if value is not None})
    listed = ", ".join(f"{one_line(name)} ({number})" for name, number in zip(names, numbers, strict=True))
    description = (
        f"bands: {listed} of {header.count}, {header.dtype}, "
        + (f"nodata {' or '.join(nodata)}" if nodata else "no nodata value")
        + f", as {one_line(path)!r} has them"
    )
    return ChosenBands(names, files, description)


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


def _read_header(file: BinaryIO) -> _Header:
    return _in_memory(file, _header_of)


def _read(file: BinaryIO, files: BandFiles) -> NDArray[np.float32]:
    """The values of the chosen bands ``[C, H, W]``, NaN where there is none."""
    num_bytes = file.seek(0, io.SEEK_END)
    return _in_memory(file, lambda source: _values_of(source, files, num_bytes))


def _in_memory(file: BinaryIO, use: Callable[[Any], T]) -> T:
    """What ``use`` makes of an opened GeoTIFF."""
    rasterio = require_rasterio()
    require_bounded_tiff(file)
    magic, num_bytes = file.read(4), file.seek(0, io.SEEK_END)
    if magic not in TIFF_MAGIC:
        raise Unreadable(
            "it is no TIFF" if magic else "the file is empty (0 bytes)", "convert it to GeoTIFF, or remove it"
        )
    file.seek(0)
    try:
        with (
            one_large_at_a_time(num_bytes),
            rasterio.io.MemoryFile(file.read()) as memory,
            memory.open(driver="GTiff") as source,
        ):
            return use(source)
    except (Unreadable, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - GDAL's have no class in common; hostile files bring about many
        detail = _MEMORY_FILE.sub("", (str(error).splitlines() or [""])[0]) or type(error).__name__
        raise Unreadable(f"it is cut short or damaged ({one_line(detail)})", COPY_AGAIN) from None


def _header_of(source: Any) -> _Header:
    dtypes = set(source.dtypes)
    if len(dtypes) > 1 or np.dtype(source.dtypes[0]).kind not in "uif":
        raise Unreadable(f"its values are {' and '.join(sorted(dtypes))}", "convert it to float32 or integers")
    return _Header(
        source.count, source.dtypes[0], source.width, source.height, source.nodatavals, source.descriptions
    )


def _values_of(source: Any, files: BandFiles, num_bytes: int) -> NDArray[np.float32]:
    header = _header_of(source)
    numbers = _numbers_in(header, files)
    step = _bounded_step(source, header, len(numbers), num_bytes)
    shape = (-(-header.height // step), -(-header.width // step))
    with one_large_at_a_time(header.width * header.height * len(numbers)):
        # GDAL takes the nearest pixels, so that no value is mixed with a missing one, or a file's own overviews.
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and so missing
            values: NDArray[np.float32] = source.read(numbers, out_shape=(len(numbers), *shape)).astype(np.float32)
        for place, number in enumerate(numbers):
            if _is_masked(source, number, numbers):
                values[place][source.read_masks(number, out_shape=shape) == 0] = np.nan
        values[~np.isfinite(values)] = np.nan
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


def _is_masked(source: Any, number: int, numbers: Sequence[int]) -> bool:
    flags = {flag.name for flag in source.mask_flag_enums[number - 1]}
    alpha = [place for place, kind in enumerate(source.colorinterp, 1) if kind.name == "alpha"]
    return "all_valid" not in flags and not ("alpha" in flags and set(alpha) & set(numbers))


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
