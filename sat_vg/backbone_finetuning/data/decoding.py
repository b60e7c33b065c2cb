"""Image files to 8-bit RGB: one function for all formats, which never returns a wrong image in silence.

The format is read off the file's first bytes, not off its ending. JPEG goes through torchvision, which is
about twice as fast as Pillow and gives the same pixels; what it refuses, CMYK JPEG, and every other format go
through Pillow. How other pixels become three 8-bit bands:

======================================  ===========================================================
grey, 1-bit                             repeated in the three bands (1-bit: 0 or 255)
palette                                 its colours
alpha (RGBA, LA, transparent colours)   composited on black: what is transparent is taken for nodata
16 bits, grey or RGB                    the high byte, ``value >> 8``
CMYK, YCbCr                             Pillow's conversion to RGB
EXIF (or TIFF) orientation              applied
several frames or pages                 the first
float, signed, 32 bits, over 4 bands    refused; ``geo`` reads them as they are
======================================  ===========================================================

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
from typing import BinaryIO, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError
from torch import Tensor

from sat_vg.backbone_finetuning.data.large_images import (
    one_large_at_a_time,
    refuse_bomb,
    refuse_hollow,
    step_within,
    tell_reduced,
    too_large,
)
from sat_vg.backbone_finetuning.data.shard_paths import ShardPath
from sat_vg.backbone_finetuning.data.tiff_headers import TIFF_MAGIC, require_bounded_tiff
from sat_vg.backbone_finetuning.data.unreadable import Unreadable
from sat_vg.backbone_finetuning.utils.errors import DataError
from sat_vg.backbone_finetuning.utils.regular_files import NotRegularFileError, open_regular

try:
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:  # deprecated since torchvision 0.29 and to be removed: Pillow then reads JPEG too
    decode_jpeg = None

# Pillow knows formats that start other programs (EPS) or are no images; those are never tried.
_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF")
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
_NAME_BANDS = f"{_CONVERT}, or say which of its bands to read, for example --bands red=4,green=3,blue=2,nir=8"


class Decoder(NamedTuple):
    """How files become images.

    Attributes:
        read: a file's path → its image. Raises DataError.
        read_or_reason: the same, or the reason why the file cannot be read, without its path.
        key: what its images depend on beside the file, as a text; empty for 8-bit RGB.
    """

    read: Callable[[str], Tensor]
    read_or_reason: Callable[[str], Tensor | str]
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
    return read_image(path, _decode)


def read_image(path: str | Path, decode: Callable[[BinaryIO], Tensor]) -> Tensor:
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
    return image_or_reason(path, _decode)


def image_or_reason(path: str | Path, decode: Callable[[BinaryIO], Tensor]) -> Tensor | str:
    """What ``decode`` makes of an open file, or the reason why it cannot, without the file's path."""
    try:
        return opened(path, decode)
    except Unreadable as problem:
        return problem.reason


RGB_DECODER = Decoder(decode_rgb, decode_or_reason)


def _decode(file: BinaryIO) -> Tensor:
    head = file.read(26)
    file.seek(0)
    if not head:
        raise Unreadable("the file is empty (0 bytes)")
    if head.startswith(b"\xff\xd8\xff"):
        return _decode_jpeg(bytearray(file.read()))
    return _decode_with_pillow(file, head)


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
            raise Unreadable(error.strerror, "remove it") from None
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


def _decode_jpeg(data: bytearray) -> Tensor:
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
            return image
    # Pillow accepts a file that is cut short if anyone in the process set LOAD_TRUNCATED_IMAGES.
    if data.find(b"\xff\xd9", 2 if header is None else header.scan_start) < 0:
        raise Unreadable("the JPEG is cut short: its end is missing")
    return _decode_with_pillow(io.BytesIO(data), bytes(data[:26]))


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


def _decode_with_pillow(file: BinaryIO, head: bytes) -> Tensor:
    try:
        if head[:4] in TIFF_MAGIC:
            require_bounded_tiff(file)
            _refuse_odd_tiff(file)
        with Image.open(file, formats=_FORMATS) as image:
            image_format = image.format
            refuse_bomb(*image.size)
            refuse_hollow(file.seek(0, io.SEEK_END), *image.size, len(image.getbands()))
            if head[:4] == b"\x89PNG" and head[24:26] == b"\x10\x02" and any(_colour_key(image)):
                # Pillow compares the 16-bit colour with the 8-bit pixels; only black comes out right.
                raise Unreadable("it is a 16-bit RGB PNG with a transparent colour", _CONVERT)
            with one_large_at_a_time(math.prod(image.size)):
                pixels = _to_rgb(_loaded(image), image_format)
    except UnidentifiedImageError:
        kinds = "JPEG, PNG, TIFF, WebP, BMP or GIF"
        raise Unreadable(f"it is no {kinds} image, or its header is cut short or damaged") from None
    except Image.DecompressionBombError as error:
        raise too_large(str(error)) from None
    except _PILLOW_ERRORS as error:
        detail = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise Unreadable(f"it is cut short or damaged ({detail})") from None
    return torch.from_numpy(pixels).permute(2, 0, 1)


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


def _refuse_odd_tiff(file: BinaryIO) -> None:
    """Refuse TIFFs that Pillow cannot read, or reads wrongly without a word (it drops bands and signs).

    Leaves ``file`` at its start. What cannot be parsed is left to Pillow to refuse.
    """
    try:
        header = file.read(8)
        if header[2:3] == b"+" or header[3:4] == b"+":  # BigTIFF
            header += file.read(8)
        tags = TiffImagePlugin.ImageFileDirectory_v2(header)
        file.seek(tags.next)
        tags.load(file)
        bands = int(tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1))
        bits = max(_numbers(tags.get(TiffImagePlugin.BITSPERSAMPLE, 1)))
        kinds = set(_numbers(tags.get(TiffImagePlugin.SAMPLEFORMAT, 1)))
        photometric = int(tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 0))
        extra = _numbers(tags.get(TiffImagePlugin.EXTRASAMPLES, ()))
    except _PILLOW_ERRORS:
        return
    finally:
        file.seek(0)
    what = None
    if bands > 4:
        what = f"{bands} bands"
    elif kinds & {3, 6}:
        what = "floating-point pixels"
    elif kinds & {2, 5}:
        what = "signed pixels"
    elif bits > 16:
        what = f"{bits}-bit integer pixels"
    elif photometric in (0, 1) and bands > 1 and not (bands == 2 and extra and extra[0] in (1, 2)):
        what = f"{bands} bands that are not marked as RGB"
    elif photometric == 0 and bits == 16:  # Pillow does not invert these
        what = "16-bit pixels in which 0 is white"
    if what is not None:
        reason = f"it is a TIFF with {what}, which has no plain 8-bit RGB reading (--bands reads it as it is)"
        raise Unreadable(reason, _NAME_BANDS)


def _numbers(value: object) -> tuple[int, ...]:
    return tuple(int(number) for number in value) if isinstance(value, tuple) else (int(str(value)),)


def _to_rgb(image: Image.Image, image_format: str | None) -> NDArray[np.uint8]:
    """Bring the pixels of a loaded image to ``[H, W, 3]`` uint8 by the table at the top."""
    # Older Pillow opens 16-bit grey PNG as 32-bit "I".
    if image.mode.startswith("I;16") or (image.mode == "I" and image_format == "PNG"):
        values = np.asarray(image)
        grey = (values >> 8).astype(np.uint8)
        nodata = image.info.get("transparency")
        if isinstance(nodata, int):
            grey[values == nodata] = 0
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode not in _RGB_MODES:
        kind = {"F": "floating-point", "I": "32-bit integer"}.get(image.mode, repr(image.mode))
        raise Unreadable(f"it has {kind} pixels, which have no plain 8-bit RGB reading", _CONVERT)
    if image.has_transparency_data:
        rgba = np.asarray(image.convert("RGBA"))
        weighted = rgba[..., :3].astype(np.uint16) * rgba[..., 3:]  # at most 65025, so no overflow
        composited: NDArray[np.uint8] = ((weighted + 127) // 255).astype(np.uint8)
        return composited
    return np.array(image.convert("RGB"))
