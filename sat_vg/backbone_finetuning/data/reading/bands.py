"""Headers of GeoTIFFs, and the bands that a configuration names in them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from sat_vg.backbone_finetuning.configs.band_choice import BandChoice, parse_band
from sat_vg.backbone_finetuning.data.reading.decoder import Scaling
from sat_vg.backbone_finetuning.data.reading.files import read_file
from sat_vg.backbone_finetuning.data.reading.gdal import require_rasterio, scaling_of, with_gdal
from sat_vg.backbone_finetuning.utils.errors import ConfigError, DataError
from sat_vg.backbone_finetuning.utils.preprocessing import RGB, BandFiles
from sat_vg.backbone_finetuning.utils.printable import counted, one_line
from sat_vg.backbone_finetuning.utils.tiff_layouts import colour_of
from sat_vg.backbone_finetuning.utils.unreadable import Unreadable

_LISTED = 20
_LONGEST_NAME = 60  # characters


class ChosenBands(NamedTuple):
    """The bands of a run."""

    names: tuple[str, ...]  # what the model calls them
    files: BandFiles  # where they lie
    description: str  # a line for the user
    warnings: tuple[str, ...] = ()  # what in the names and numbers contradicts the files' descriptions, a line each


@dataclass(frozen=True)
class Header:
    """The header of a GeoTIFF; ``nodata``, ``descriptions`` and ``scaling`` (scale and offset) by band."""

    count: int
    dtype: str
    width: int
    height: int
    nodata: tuple[float | None, ...]
    descriptions: tuple[str | None, ...]
    scaling: Scaling


def header_of(source: Any) -> Header:
    """The header of a file that rasterio has opened.

    Raises:
        Unreadable: its values are no real numbers, or of several types.
    """
    dtypes = set(source.dtypes)
    if len(dtypes) > 1 or np.dtype(source.dtypes[0]).kind not in "uif":
        raise Unreadable(f"its values are {' and '.join(sorted(dtypes))}", "convert it to float32 or integers")
    return Header(
        source.count,
        source.dtypes[0],
        source.width,
        source.height,
        source.nodatavals,
        source.descriptions,
        scaling_of(source),
    )


def find_bands(bands: Sequence[int | str], paths: Sequence[str], nodata: float | None = None) -> ChosenBands:
    """The bands that a configuration names, as the first of the files that can be read has them.

    ``nodata`` is a value that stands for none, beside those that the files name.

    Raises:
        ConfigError: rasterio is not installed, or the files cannot hold ``nodata``.
        DataError: there is no such band, or none of the files is a GeoTIFF.
    """
    require_rasterio()
    first: tuple[str, str] | None = None
    for path in paths:
        try:
            header = read_file(path, lambda file: with_gdal(file, lambda source, _: header_of(source)))
            return _choose([parse_band(band) for band in bands], header, path, nodata)
        except Unreadable as problem:
            first = first or (path, problem.reason)
    why = f"the first, {first[0]!r}: {first[1]}" if first else "there are none"
    raise DataError(
        f"bands = {list(bands)}: none of the {len(paths)} training images is a GeoTIFF that can be read ({why}). "
        "Leave bands out for 8-bit RGB images"
    )


def _choose(choices: Sequence[BandChoice], header: Header, path: str, nodata: float | None) -> ChosenBands:
    for choice in choices:
        if isinstance(choice.source, int) and choice.source > header.count:
            raise DataError(
                f"{path!r} has {counted(header.count, 'band')}, so there is none of number {choice.source}; "
                f"{_known_bands(header.descriptions)}"
            )
    sources = tuple(choice.source for choice in choices)
    try:
        numbers = _numbers_of(sources, header)
    except LookupError as error:
        raise DataError(f"{path!r} {error.args[0]}") from None
    found = []
    for choice, number in zip(choices, numbers, strict=True):
        text = one_line((header.descriptions[number - 1] or "").strip())[:_LONGEST_NAME]
        found.append(choice.name or (text.lower() if text.lower() in RGB else text))  # Red is red
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
    scaling = [header.scaling[number - 1] for number in numbers]
    is_tagged = any(scale != 1 for scale, _ in scaling)
    files = BandFiles(sources, header.dtype, header.count, nodata, "tagged" if is_tagged else "plain")
    listed = ", ".join(f"{one_line(name)} ({number})" for name, number in zip(names, numbers, strict=True))
    description = (
        f"bands: {listed} of {header.count}, {header.dtype}, {_about_nodata(header, nodata)}"
        f"{_about_scaling(scaling)}, as {one_line(path)!r} has them"
    )
    return ChosenBands(names, files, description, tuple(_contradictions(choices, header, path)))


def _about_nodata(header: Header, nodata: float | None) -> str:
    known = sorted({f"{value:g}" for value in (*header.nodata, nodata) if value is not None})
    return f"nodata {' or '.join(known)}" if known else "no nodata value"


def _about_scaling(scaling: Sequence[tuple[float, float]]) -> str:
    pairs = dict.fromkeys(scaling)
    if set(pairs) == {(1.0, 0.0)}:
        return ""
    return ", with " + " or ".join(f"scale {scale:g} and offset {offset:g}" for scale, offset in pairs) + " applied"


def _contradictions(choices: Sequence[BandChoice], header: Header, path: str) -> list[str]:
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
        is_other_colour = None not in (colour_of(name), colour_of(own)) and colour_of(name) != colour_of(own)
        if own.casefold() != name and (others or is_other_colour):
            where = f", and {choice.name!r} its band {others[0]}" if others else ""
            found.append(
                f"bands: {choice.name}={choice.source}, but {path!r} calls its band {choice.source} "
                f"{one_line(own)!r}{where}; check the numbers"
            )
    return found


def _numbers_of(sources: Sequence[int | str], header: Header) -> list[int]:
    """The numbers of bands that are named by number or description; LookupError where one is not there once."""
    numbers: list[int] = []
    for source in sources:
        if isinstance(source, int):
            numbers.append(source)
            continue
        named = [(text or "").strip().casefold() == source.casefold() for text in header.descriptions]
        if sum(named) != 1:
            raise LookupError(f"has no single band that is called {source!r}; {_known_bands(header.descriptions)}")
        numbers.append(1 + named.index(True))
    return numbers


def _known_bands(descriptions: Sequence[str | None]) -> str:
    """The names of a file's bands, in words."""
    named = [f"{number} {one_line(text)!r}" for number, text in enumerate(descriptions, 1) if text]
    if not named:
        return "its bands have no names, so choose them by their numbers, from 1"
    return f"its bands are {', '.join(named[:_LISTED])}" + (" …" if len(named) > _LISTED else "")


def numbers_in(header: Header, files: BandFiles) -> list[int]:
    """The numbers of the chosen bands in a file. Raises Unreadable where it is of another kind than the others."""
    apart = "keep images of different kinds apart, or convert them"
    if header.dtype != files.dtype:
        raise Unreadable(
            f"its values are {header.dtype}, and {files.dtype} in the first image of the training", apart
        )
    by_number = any(isinstance(band, int) for band in files.bands)
    if by_number and header.count != files.count:
        reason = f"it has {counted(header.count, 'band')}, and the first image of the training {files.count}"
        raise Unreadable(f"{reason}, so the numbers may mean others", apart)
    try:
        return _numbers_of(files.bands, header)
    except LookupError as error:
        raise Unreadable(f"it {error.args[0]}", apart) from None


def holds(dtype: Any, value: float) -> bool:
    """Whether values of a type can be ``value``."""
    if np.dtype(dtype).kind == "f":
        return True
    limits = np.iinfo(dtype)
    return float(value).is_integer() and limits.min <= value <= limits.max
