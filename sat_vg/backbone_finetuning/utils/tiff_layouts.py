"""How the pixels of a TIFF are laid out, by its tags, and whether Pillow reads such a layout.

Pillow misreads some layouts without a word and calls others damaged, so what it may read is listed here, not what it
may not: each of these was compared with the values that were written. GDAL reads the others, where rasterio is there.
"""

import re
from dataclasses import dataclass
from typing import BinaryIO

from PIL import Image, TiffImagePlugin

from sat_vg.backbone_finetuning.utils.unreadable import Unreadable

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_KINDS = {_PALETTE: "palette", _CMYK: "CMYK", _YCBCR: "YCbCr"}
_LAB = frozenset({8, 9, 10})  # libtiff's colours of it have a cast
_JPEG = (6, 7)
# No compression, CCITT (three), LZW, JPEG (two), Deflate (two), PackBits, LZMA, Zstandard.
_PILLOWS = frozenset({1, 2, 3, 4, 5, *_JPEG, 8, 32946, 32773, 34925, 50000})
_COMPRESSIONS = {34887: "LERC", 50001: "WebP", 50002: "JPEG XL", 34712: "JPEG 2000", 34925: "LZMA", 50000: "ZSTD"}
_LOSSY = frozenset({*_JPEG, 34887, 50001, 50002, 34712})
# Pixel scale, tie point and transformation, keys of the reference system, GDAL's metadata and nodata.
_GEO_TAGS = (33550, 33922, 34264, 34735, 42112, 42113)
_GDAL_METADATA, _GDAL_NODATA = 42112, 42113
_MARK = re.compile(
    r'<Item name="(?:COLORINTERP|DESCRIPTION)" sample="(\d{1,5})" role="(colorinterp|description)">([^<]{1,60})<'
)
_SCALING = re.compile(r'<Item name="(?:SCALE|OFFSET)" sample="(\d{1,5})" role="(scale|offset)">([^<]{1,40})</Item>')
_SENTINEL_2 = {"b02": "blue", "b03": "green", "b04": "red"}  # and HLS
# B2, B3 and B4 of Sentinel-2 and Landsat 8; those of Landsat 5 and 7 are green, red and near infrared.
_SHORT_NAMES = {"b2": "blue", "b3": "green", "b4": "red", "srb2": "blue", "srb3": "green", "srb4": "red"}
_CONVERT = "convert it to 8-bit RGB"
NAME_BANDS = f"{_CONVERT}, or say which of its bands to read, for example --bands red=4,green=3,blue=2,nir=8"

# What Pillow's parsers let escape on damaged files.
_TAG_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, EOFError, RuntimeError,
)  # fmt: skip


@dataclass(frozen=True)
class TiffLayout:
    """The layout of a TIFF's pixels, by its tags.

    Attributes:
        bands: how many there are.
        bits: of each value, by band.
        kinds: of values: 1 unsigned, 2 signed, 3 floating point, 5 and 6 complex, 4 and others undefined.
        photometric: what the bands mean.
        extra: what those beyond the colours mean: 0 anything, 1 associated alpha, 2 unassociated alpha.
        compression: its number.
        is_planar: whether the bands are stored one after the other; Pillow misreads that mark even of a single band.
        orientation: 1 to 8, as in EXIF.
        is_geodata: whether software for geodata has written it: there is a reference system, a GDAL tag, or a tag
            for the kind of values, which image editors leave out.
        scaling: scale and offset by band; empty where all are 1 and 0.
        nodata: the value that GDAL's tag declares as missing; None: there is no such tag.
        marks: colours of the bands by their descriptions and GDAL's interpretation of them, in lower case; "" where
            a band has none; empty where no band has one.
    """

    bands: int
    bits: tuple[int, ...]
    kinds: frozenset[int]
    photometric: int
    extra: tuple[int, ...]
    compression: int
    is_planar: bool
    orientation: int
    is_geodata: bool
    scaling: tuple[tuple[float, float], ...]
    nodata: float | None
    marks: tuple[str, ...]

    @property
    def is_lossy(self) -> bool:
        """Whether values may differ a little from those that were written."""
        return self.compression in _LOSSY

    @property
    def inverts(self) -> bool:
        """Whether the largest value is black."""
        return self.photometric == _WHITE_IS_ZERO

    @property
    def nodata_as_byte(self) -> int | None:
        """The nodata value as it is in an 8-bit picture; None: there is none, or it is no grey."""
        bits = max(self.bits)
        if self.nodata is None or not self.nodata.is_integer() or not 0 <= self.nodata < 2**bits:
            return None
        if self.photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB):
            return None
        value = int(self.nodata) >> (bits - 8) if bits > 8 else int(self.nodata) * 255 // (2**bits - 1)
        return 255 - value if self.inverts else value

    @property
    def has_associated_alpha(self) -> bool:
        """Whether the colours are stored as composited on black."""
        return bool(self.extra) and self.extra[0] == 1 and self.photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB)


def tiff_layout(file: BinaryIO) -> TiffLayout | None:
    """The layout of a TIFF's first image; None where its tags cannot be parsed. Leaves ``file`` at its start."""
    try:
        header = file.read(8)
        if header[2:3] == b"+" or header[3:4] == b"+":  # BigTIFF
            header += file.read(8)
        tags = TiffImagePlugin.ImageFileDirectory_v2(header)
        file.seek(tags.next)
        tags.load(file)
        return _layout_of(tags)
    except _TAG_ERRORS:
        return None
    finally:
        file.seek(0)


def layout_of_image(image: Image.Image) -> TiffLayout | None:
    """The layout of a TIFF that Pillow has opened; None of other images, and where its tags cannot be parsed."""
    try:
        return _layout_of(image.tag_v2) if isinstance(image, TiffImagePlugin.TiffImageFile) else None
    except _TAG_ERRORS:
        return None


def _layout_of(tags: TiffImagePlugin.ImageFileDirectory_v2) -> TiffLayout:
    bands = int(tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1))
    metadata = str(tags.get(_GDAL_METADATA, ""))
    return TiffLayout(
        bands=bands,
        bits=_numbers(tags.get(TiffImagePlugin.BITSPERSAMPLE, 1)),
        kinds=frozenset(_numbers(tags.get(TiffImagePlugin.SAMPLEFORMAT, 1))),
        photometric=int(tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 0)),
        extra=_numbers(tags.get(TiffImagePlugin.EXTRASAMPLES, ())),
        compression=int(tags.get(TiffImagePlugin.COMPRESSION, 1)),
        is_planar=int(tags.get(TiffImagePlugin.PLANAR_CONFIGURATION, 1)) == 2,
        orientation=int(tags.get(0x0112, 1)),
        is_geodata=any(tag in tags for tag in (*_GEO_TAGS, TiffImagePlugin.SAMPLEFORMAT)),
        scaling=_scaling(metadata, bands),
        nodata=_number(str(tags.get(_GDAL_NODATA, ""))),
        marks=_marks(metadata, bands),
    )


def colour_of(description: str) -> str | None:
    """Which of red, green, blue and nir a band is by its description, such as ``Band 4 (Red)``; None: it is open."""
    words = re.findall(r"[a-z]+|\d+", description.casefold())
    whole = "".join(words)
    if whole in _SENTINEL_2:
        return _SENTINEL_2[whole]
    if "nir" in words or "nearinfrared" in whole:
        return "nir"
    colours = {"red", "green", "blue"}.intersection(words)
    return colours.pop() if len(colours) == 1 and not {"edge", "coastal", "infra"}.intersection(words) else None


def require_picture(layout: TiffLayout) -> None:
    """Refuse what has no plain 8-bit RGB reading.

    Raises:
        Unreadable: names what it is, and the ways out.
    """
    bits, what = max(layout.bits), None
    if layout.bands > 4:
        what = f"{layout.bands} bands"
    elif layout.kinds & {3, 6}:
        what = "floating-point pixels"
    elif layout.kinds & {2, 5}:
        what = "signed pixels"
    elif bits > 16:
        what = f"{bits}-bit integer pixels"
    elif _is_grey(layout) and layout.bands > 1 and not (layout.bands == 2 and layout.extra[:1] in ((1,), (2,))):
        what = f"{layout.bands} bands that are not marked as RGB"
    elif layout.photometric in _LAB:
        what = "CIELAB pixels"
    if what is not None:
        reason = f"it is a TIFF with {what}, which has no plain 8-bit RGB reading (--bands reads it as it is)"
        raise Unreadable(reason, NAME_BANDS)


def why_not_pillow(layout: TiffLayout) -> str | None:
    """What of a layout that passed ``require_picture`` Pillow cannot read or misreads; None: nothing."""
    bits, one_depth = max(layout.bits), len(set(layout.bits)) == 1
    if layout.compression not in _PILLOWS:
        return f"{_COMPRESSIONS.get(layout.compression, f'number {layout.compression} as its')} compression"
    if not one_depth:
        return f"bands of {' and '.join(map(str, layout.bits))} bits"
    kind = _KINDS.get(layout.photometric)
    if kind is None and not _is_grey(layout) and layout.photometric != _RGB:
        return f"photometric interpretation {layout.photometric}"
    if kind == "YCbCr" and layout.compression not in _JPEG:
        return "YCbCr pixels that are not JPEG"
    if layout.is_planar and (layout.photometric, layout.bands, bits) not in ((_RGB, 3, 8), (_BLACK_IS_ZERO, 1, 8)):
        return f"{bits}-bit {kind or 'grey or RGBA'} bands one after the other"
    depths = {1, 2, 4, 8, 16} if _is_grey(layout) else {1, 2, 4, 8} if kind == "palette" else {8, 16}
    if layout.bands > 1 and (_is_grey(layout) or kind is not None):
        depths = {8}
    if bits not in depths or (bits < 8 and layout.compression in _JPEG):
        return f"{bits}-bit {kind or 'grey' if layout.photometric != _RGB else 'RGB'} pixels"
    return "16-bit pixels in which 0 is white" if layout.inverts and bits == 16 else None


def _is_grey(layout: TiffLayout) -> bool:
    return layout.photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO)


def _numbers(value: object) -> tuple[int, ...]:
    return tuple(int(number) for number in value) if isinstance(value, tuple) else (int(str(value)),)


def _scaling(metadata: str, bands: int) -> tuple[tuple[float, float], ...]:
    found = [[1.0, 0.0] for _ in range(min(bands, 4))]  # of more there is no picture
    for band, role, text in _SCALING.findall(metadata):
        if int(band) < len(found):
            found[int(band)][role == "offset"] = float(text)
    return () if all(pair == [1.0, 0.0] for pair in found) else tuple((scale, offset) for scale, offset in found)


def _marks(metadata: str, bands: int) -> tuple[str, ...]:
    found = [""] * min(bands, 4)
    told = _MARK.findall(metadata)
    for band, role, text in told:
        colour = colour_of(text)
        if int(band) < len(found) and colour and (role == "description" or not found[int(band)]):
            found[int(band)] = colour
    if not any(found):
        texts = {int(band): "".join(re.findall(r"\w+", text.casefold())).replace("_", "") for band, _, text in told}
        short = {
            band: _SHORT_NAMES[text] for band, text in texts.items() if text in _SHORT_NAMES and band < len(found)
        }
        if len(set(short.values())) == len(short) == 3:
            found = [short.get(band, "") for band in range(len(found))]
    return tuple(found) if any(found) else ()


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
