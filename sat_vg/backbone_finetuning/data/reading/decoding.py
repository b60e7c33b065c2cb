"""Image files to 8-bit RGB: one function for all formats, which never returns a wrong image in silence.

The format is read off the file's first bytes, not off its ending. JPEG goes through torchvision, which is
about twice as fast as Pillow and gives the same pixels; what it refuses, CMYK JPEG, and every other format go
through Pillow, and TIFFs of layouts that Pillow misreads through GDAL (see ``tiff_layouts``). How other pixels become
three 8-bit bands:

======================================  ===========================================================
grey, 1-bit                             repeated in the three bands (1-bit: 0 or 255)
palette                                 its colours
alpha (RGBA, LA, transparent colours)   composited on black: what is transparent is taken for nodata
alpha by its mark alone (see below)     left out
9 to 16 bits, grey or RGB               the highest eight, of 16 ``value >> 8``
2 to 7 bits                             spread over 0 to 255
CMYK, YCbCr                             Pillow's conversion to RGB
EXIF (or TIFF) orientation              applied
several frames or pages                 the first
float, signed, 32 bits, over 4 bands    refused; ``geo`` reads them as they are
======================================  ===========================================================

GDAL marks the fourth of four 8-bit bands as alpha unless it is told otherwise, and in many data sets it is near
infrared. So in a TIFF that software for geodata wrote alpha is taken for transparency only if it is nearly binary: no
value between 0 and full, or at least three times as many full ones as such.

The Python warnings of Pillow, torchvision.io and rasterio are muted in the whole process, as the filters of
``warnings`` are not safe to swap around single calls in threads: what matters among them is an error here. Not to be
detected are bytes altered inside a whole file of a format without checksums (JPEG, BMP, WebP, plain TIFF).

What a hostile file can cost is bounded: only regular files are read (a pipe would wait for ever, a device never
end), of ``MAX_FILE_BYTES`` at the most and with twice ``PIL.Image.MAX_IMAGE_PIXELS`` at the most; above that number
itself, images are read at half their width and height; of large images one is decoded at a time in each process; and
a progressive JPEG has at most ``_MAX_SCANS`` scans, each of which costs a pass over all its pixels.
"""

import contextlib
import io
import math
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from sat_vg.backbone_finetuning.data.checks.image_traits import Traits
from sat_vg.backbone_finetuning.data.reading.gdal_files import JPEG2000_MAGIC, has_rasterio, with_gdal
from sat_vg.backbone_finetuning.data.reading.gdal_pictures import Colours, colours_of, is_transparency, upright
from sat_vg.backbone_finetuning.data.reading.large_images import (
    one_large_at_a_time,
    refuse_bomb,
    refuse_hollow,
    step_within,
    tell_reduced,
    too_large,
)
from sat_vg.backbone_finetuning.data.reading.tiff_headers import TIFF_MAGIC, require_bounded_tiff
from sat_vg.backbone_finetuning.data.reading.tiff_layouts import (
    NAME_BANDS,
    TiffLayout,
    refuse_without_gdal,
    require_picture,
    tiff_layout,
    why_not_pillow,
)
from sat_vg.backbone_finetuning.data.reading.unreadable import Unreadable
from sat_vg.backbone_finetuning.data.shards.paths import ShardPath
from sat_vg.backbone_finetuning.utils.errors import DataError
from sat_vg.backbone_finetuning.utils.regular_files import NotRegularFileError, open_regular

try:
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:  # deprecated since torchvision 0.29 and to be removed: Pillow then reads JPEG too
    decode_jpeg = None

# Pillow knows formats that start other programs (EPS) or are no images; those are never tried.
_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "JPEG2000")
_RGB_MODES = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LA", "PA", "RGBA", "RGBa"})
# What Pillow's parsers let escape on damaged files.
_PILLOW_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
)

MAX_FILE_BYTES = 2**30
_MAX_SCANS = 200  # encoders write about ten

T = TypeVar("T")

_CONVERT = "convert it to 8-bit RGB"


class Picture(NamedTuple):
    """A decoded image, and what its file says of its values."""

    pixels: Tensor
    traits: Traits = Traits()


class Decoder(NamedTuple):
    """How files become images.

    Attributes:
        read: a file's path → its image. Raises DataError.
        read_or_reason: the same, or the reason why the file cannot be read, without its path.
        examine: as ``read_or_reason``, with what the file says of its values.
        key: what its images depend on beside the file, as a text; empty for 8-bit RGB.
    """

    read: Callable[[str], Tensor]
    read_or_reason: Callable[[str], Tensor | str]
    examine: Callable[[str], Picture | str]
    key: str = ""


class _JpegHeader(NamedTuple):
    height: int
    width: int
    components: int
    scan_start: int  # where the compressed pixels begin, in bytes


def decode_rgb(path: str | Path) -> Tensor:
    """Decode an image file to RGB.

    Args:
        path: a JPEG, PNG, TIFF, WebP, BMP or GIF file, whatever its ending.

    Returns:
        uint8 tensor ``[3, height, width]``, values 0 to 255, upright; laid out in memory as ``[H, W, 3]``
        (channels last), which is what the decoders write and what resizing is quickest on.

    Raises:
        DataError: the file is missing, empty, cut short, no image, larger than twice
            ``PIL.Image.MAX_IMAGE_PIXELS``, or of a pixel type that has no plain 8-bit reading.
    """
    return read_image(path, _decode).pixels


def read_image(path: str | Path, decode: Callable[[BinaryIO], T]) -> T:
    """What ``decode`` makes of an open file.

    Raises:
        DataError: there is no such file, or ``decode`` raises Unreadable; names file and remedy.
    """
    try:
        return opened(path, decode)
    except Unreadable as problem:
        raise DataError(f"cannot read the image {str(path)!r}: {problem.reason}; {problem.remedy}") from None


def why_unreadable(path: str | Path) -> str | None:
    """Decode an image file and tell what is wrong with it.

    Returns:
        The reason why ``decode_rgb`` refuses the file, without its path; None if it decodes.
    """
    image = decode_or_reason(path)
    return image if isinstance(image, str) else None


def decode_or_reason(path: str | Path) -> Tensor | str:
    """The image as ``decode_rgb`` gives it, or the reason why it refuses the file, without its path."""
    picture = examine_or_reason(path)
    return picture if isinstance(picture, str) else picture.pixels


def examine_or_reason(path: str | Path) -> Picture | str:
    """The same, with what the file says of its values."""
    return image_or_reason(path, _decode)


def image_or_reason(path: str | Path, decode: Callable[[BinaryIO], T]) -> T | str:
    """What ``decode`` makes of an open file, or the reason why it cannot, without the file's path."""
    try:
        return opened(path, decode)
    except Unreadable as problem:
        return problem.reason


RGB_DECODER = Decoder(decode_rgb, decode_or_reason, examine_or_reason)


def _decode(file: BinaryIO) -> Picture:
    head = file.read(26)
    file.seek(0)
    if not head:
        raise Unreadable("the file is empty (0 bytes)")
    if head.startswith(b"\xff\xd8\xff"):
        return _decode_jpeg(bytearray(file.read()))
    require_bounded_tiff(file)
    layout = tiff_layout(file) if head[:4] in TIFF_MAGIC else None
    if layout is not None:
        require_picture(layout)
        why = why_not_pillow(layout)
        if why is not None and not has_rasterio():
            raise refuse_without_gdal(why)
        # Pillow divides the colours by associated alpha, which loses what is dark.
        if why is not None or (layout.has_associated_alpha and has_rasterio()):
            return _decode_with_gdal(file, layout)
    return _decode_with_pillow(file, head, layout)


def opened(path: str | Path, use: Callable[[BinaryIO], T]) -> T:
    """What ``use`` makes of a file that has an end and is not too large.

    Raises:
        Unreadable: there is no such file, it cannot be opened, or ``use`` says so.
        DataError: it lies in a shard that cannot be fetched.
    """
    _mute_warnings()
    try:
        with _open_in_shard(path) if isinstance(path, ShardPath) else _open_file(Path(path)) as file:
            return use(file)
    except DataError:  # a shard that cannot be fetched is no matter of this image
        raise
    except FileNotFoundError:
        raise Unreadable("there is no such file", "check the path, and whether a link leads nowhere") from None
    except OSError as error:
        reason = f"the file cannot be opened ({error.strerror or error})"
        raise Unreadable(reason, "check its permissions and the disk") from None
    except ValueError as error:  # a NUL in the path
        raise Unreadable(f"the path cannot be opened ({error})", "check the path") from None
    except MemoryError:
        raise Unreadable("there is too little memory to decode it", "cut it into smaller tiles") from None


def _open_file(path: Path) -> BinaryIO:
    with contextlib.ExitStack() as undo:
        try:
            file = undo.enter_context(open_regular(path))
        except NotRegularFileError as error:
            raise Unreadable(error.strerror or str(error), "remove it") from None
        _refuse_large(os.fstat(file.fileno()).st_size)
        undo.pop_all()
        return file


def _open_in_shard(path: ShardPath) -> BinaryIO:
    _refuse_large(path.size)
    return path.open()


def _refuse_large(num_bytes: int) -> None:
    if num_bytes > MAX_FILE_BYTES:
        size = f"{num_bytes / 2**30:.1f} GiB, the limit is {MAX_FILE_BYTES / 2**30:g} GiB"
        raise Unreadable(f"the file is too large ({size})", "cut it into smaller tiles")


_MUTED = r"(PIL|torchvision\.io|rasterio)(\.|$)"
warnings.filterwarnings("ignore", module=_MUTED)
_MUTE_FILTER = warnings.filters[0]


def _mute_warnings() -> None:
    # Looked at before each image, since whoever changes the filters later (pytest does) may undo it.
    if not warnings.filters or warnings.filters[0] != _MUTE_FILTER:
        warnings.filterwarnings("ignore", module=_MUTED)


def _decode_jpeg(data: bytearray) -> Picture:
    header = _jpeg_header(data)
    is_whole = True
    if header is not None:
        refuse_bomb(header.width, header.height)  # torchvision has no limit of its own
        is_whole = _step(header.width, header.height) == 1
        if data.count(b"\xff\xda") > _MAX_SCANS:  # in compressed pixels an ff is never followed by da
            raise Unreadable(f"it is a JPEG of more than {_MAX_SCANS} scans, made to keep decoders busy")
    # Versions of torchvision differ in how they turn CMYK into RGB, hence Pillow's for all.
    if decode_jpeg is not None and header is not None and header.components != 4 and is_whole:
        # What torchvision refuses Pillow then reads, or tells better why not.
        with contextlib.suppress(RuntimeError), one_large_at_a_time(header.width * header.height):
            encoded = torch.frombuffer(data, dtype=torch.uint8)
            image: Tensor = decode_jpeg(encoded, mode=ImageReadMode.RGB, apply_exif_orientation=True)
            return Picture(image)
    # Pillow accepts a file that is cut short if anyone in the process set LOAD_TRUNCATED_IMAGES.
    if data.find(b"\xff\xd9", 2 if header is None else header.scan_start) < 0:
        raise Unreadable("the JPEG is cut short: its end is missing")
    return _decode_with_pillow(io.BytesIO(data), bytes(data[:26]), None)


def _jpeg_header(data: bytearray) -> _JpegHeader | None:
    """Size, components and scan of a JPEG; None if the data end before or the markers are damaged."""
    frame: tuple[int, int, int] | None = None
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # padding
            position += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:  # markers without a length
            position += 2
            continue
        if marker == 0xDA:
            return None if frame is None else _JpegHeader(*frame, scan_start=position)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if position + 10 > len(data):
                return None
            frame = struct.unpack_from(">HHB", data, position + 5)
        position += 2 + int(struct.unpack_from(">H", data, position + 2)[0])
    return None


def _decode_with_gdal(file: BinaryIO, layout: TiffLayout) -> Picture:
    num_bytes = file.seek(0, io.SEEK_END)

    def read(source: Any) -> Colours:
        refuse_bomb(source.width, source.height)
        refuse_hollow(num_bytes, source.width, source.height, source.count)
        step = _step(source.width, source.height)
        if step > 1:
            tell_reduced(source.width, source.height, step)
        with one_large_at_a_time(source.width * source.height):
            return colours_of(source, layout.inverts, step)

    colours = with_gdal(file, read, ("GTiff",))
    pixels, alpha = colours.as_bytes()
    kind = ""
    if alpha is not None and not layout.has_associated_alpha:
        pixels, kind = _composited(pixels, alpha, layout)
    return _picture(upright(pixels, layout.orientation), colours.bits, kind, layout)


def _decode_with_pillow(file: BinaryIO, head: bytes, layout: TiffLayout | None) -> Picture:
    try:
        with Image.open(file, formats=_FORMATS) as image:
            image_format = image.format
            refuse_bomb(*image.size)
            refuse_hollow(file.seek(0, io.SEEK_END), image.width, image.height, len(image.getbands()))
            if head[:4] == b"\x89PNG" and head[24:26] == b"\x10\x02" and any(_colour_key(image)):
                # Pillow compares the 16-bit colour with the 8-bit pixels; only black comes out right.
                raise Unreadable("it is a 16-bit RGB PNG with a transparent colour", _CONVERT)
            with one_large_at_a_time(math.prod(image.size)):
                bits = _bits_of(image, head, layout)
                pixels, alpha = _to_rgb(_loaded(image), image_format, layout)
    except UnidentifiedImageError:
        if head.startswith(JPEG2000_MAGIC):
            raise Unreadable("it is a JPEG 2000 of a kind that Pillow does not read", NAME_BANDS) from None
        kinds = "JPEG, PNG, TIFF, WebP, BMP, GIF or JPEG 2000"
        raise Unreadable(f"it is no {kinds} image, or its header is cut short or damaged") from None
    except Image.DecompressionBombError as error:
        raise too_large(str(error)) from None
    except _PILLOW_ERRORS as error:
        detail = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise Unreadable(f"it is cut short or damaged ({detail})") from None
    return _picture(pixels, bits, alpha, layout)


def _picture(pixels: NDArray[np.uint8], bits: int, alpha: str, layout: TiffLayout | None) -> Picture:
    """The image ``[H, W, 3]`` with its traits."""
    levels = int(pixels.max()) + 1 if bits > 8 else 0
    scaling = () if layout is None else layout.scaling
    depth = "8-bit" if bits <= 8 else f"{bits}-bit"
    return Picture(torch.from_numpy(pixels).permute(2, 0, 1), Traits(depth, alpha, scaling=scaling, levels=levels))


def _bits_of(image: Image.Image, head: bytes, layout: TiffLayout | None) -> int:
    if layout is not None:
        return max(layout.bits)
    if head[:4] == b"\x89PNG":
        return head[24]
    return 16 if image.mode.startswith("I;16") else 8


def _loaded(image: Image.Image) -> Image.Image:
    """The pixels, upright; of images above ``PIL.Image.MAX_IMAGE_PIXELS`` each so-manieth row and column."""
    width, height = image.size
    step = _step(width, height)
    if step > 1:
        tell_reduced(width, height, step)
        image.draft(None, (width // step, height // step))  # JPEG's own way; nothing happens for other formats
    image.load()
    with contextlib.suppress(*_PILLOW_ERRORS):  # damaged EXIF: the pixels are whole all the same
        ImageOps.exif_transpose(image, in_place=True)
    step = _step(*image.size)
    if step == 1:
        return image
    return image.resize([math.ceil(side / step) for side in image.size], Image.Resampling.NEAREST)


def _step(width: int, height: int) -> int:
    return step_within(width * height, Image.MAX_IMAGE_PIXELS)


def _colour_key(image: Image.Image) -> tuple[int, ...]:
    key = image.info.get("transparency")
    return key if isinstance(key, tuple) else ()


def _to_rgb(image: Image.Image, image_format: str | None, layout: TiffLayout | None) -> tuple[NDArray[np.uint8], str]:
    """The pixels of a loaded image as ``[H, W, 3]`` uint8 by the table at the top, and what its alpha is."""
    # Older Pillow opens 16-bit grey PNG as 32-bit "I".
    if image.mode.startswith("I;16") or (image.mode == "I" and image_format == "PNG"):
        values = np.asarray(image)
        grey = (values >> 8).astype(np.uint8)
        nodata = image.info.get("transparency")
        if isinstance(nodata, int):
            grey[values == nodata] = 0
        return np.repeat(grey[..., None], 3, axis=2), ""
    if image.mode not in _RGB_MODES:
        kind = {"F": "floating-point", "I": "32-bit integer"}.get(image.mode, repr(image.mode))
        raise Unreadable(f"it has {kind} pixels, which have no plain 8-bit RGB reading", _CONVERT)
    if image.has_transparency_data:
        rgba = np.asarray(image.convert("RGBA"))
        return _composited(rgba[..., :3], rgba[..., 3], layout)
    return np.array(image.convert("RGB")), ""


def _composited(
    rgb: NDArray[np.uint8], alpha: NDArray[np.uint8], layout: TiffLayout | None
) -> tuple[NDArray[np.uint8], str]:
    """The colours on black, and what the alpha is (see ``Traits``); as they are where it is none by its values."""
    if layout is not None and layout.is_geodata and not is_transparency(alpha, is_lossy=layout.is_lossy):
        return np.array(rgb), "ignored" if rgb.any() else ""
    weighted = rgb.astype(np.uint16) * alpha[..., None]  # at most 65025, so no overflow
    composited: NDArray[np.uint8] = ((weighted + 127) // 255).astype(np.uint8)
    is_soft = bool(((alpha > 0) & (alpha < 255)).any()) and not (layout is not None and layout.is_lossy)
    return composited, "soft" if is_soft else ""
