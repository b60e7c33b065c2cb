"""Image files to 8-bit RGB: one function for all formats, which never returns a wrong image in silence.

The format is read off the file's first bytes, not off its ending. JPEG goes through torchvision, which is about
twice as fast as Pillow and gives the same pixels; what it refuses, CMYK JPEG, and every other format go through
Pillow, and TIFFs of layouts that Pillow misreads through GDAL (see ``utils.tiff_layouts``). How other pixels become
three 8-bit bands (``utils.pil_pixels``):

======================================  ===========================================================
grey, 1-bit                             repeated in the three bands (1-bit: 0 or 255)
palette                                 its colours
alpha (RGBA, LA, transparent colours)   composited on black: what is transparent is taken for nodata
alpha by its mark alone (see below)     left out
nodata and masks of GeoTIFFs            not applied; said where that shows
9 to 16 bits, grey or RGB               the highest eight, of 16 ``value >> 8``
2 to 7 bits                             spread over 0 to 255
CMYK, YCbCr                             Pillow's conversion to RGB
EXIF (or TIFF) orientation              applied
several frames or pages                 the first
float, signed, 32 bits, over 4 bands    refused; ``geo`` reads them as they are
======================================  ===========================================================

GDAL marks the fourth of four 8-bit bands as alpha by default, and in many data sets it is near
infrared. So in a TIFF that software for geodata wrote alpha is taken for transparency only if it is nearly binary: no
value between 0 and full, or at least three times as many full ones as such.

The Python warnings of Pillow, torchvision.io and rasterio are muted in the whole process, as the filters of
``warnings`` are not safe to swap around single calls in threads: what matters among them is an error here. Bytes
altered inside a whole file of a format without checksums (JPEG, BMP, WebP, plain TIFF) cannot be detected.

The cost of a hostile file is bounded: only regular files are read (a pipe would wait for ever, a device never
end), of ``files.MAX_FILE_BYTES`` and twice ``PIL.Image.MAX_IMAGE_PIXELS`` at the most; above that number itself,
images are read at half their width and height; of large images one is decoded at a time in each process; and a
progressive JPEG has at most ``_MAX_SCANS`` scans, each of which costs a pass over all its pixels.
"""

import contextlib
import io
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from sat_vg.backbone_finetuning.data.reading import gdal, limits
from sat_vg.backbone_finetuning.data.reading.decoder import Decoder, Picture, Traits
from sat_vg.backbone_finetuning.data.reading.files import PathInArchive
from sat_vg.backbone_finetuning.utils import pil_pixels, tiff_layouts
from sat_vg.backbone_finetuning.utils.unreadable import Unreadable

try:
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:  # deprecated since torchvision 0.29 and to be removed: Pillow then reads JPEG too
    decode_jpeg = None

# Pillow knows formats that start other programs (EPS) or are no images; those are never tried.
_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "JPEG2000")
_MAX_SCANS = 200  # encoders write about ten
_LEAST_SHOWN = 0.01  # share of an image's pixels


class _JpegHeader(NamedTuple):
    height: int
    width: int
    components: int
    scan_start: int  # where the compressed pixels begin, in bytes


@dataclass(frozen=True)
class RgbDecoder(Decoder):
    """Reads image files as 8-bit RGB (see the top of this module)."""

    def decode(self, file: BinaryIO) -> Picture:
        """See ``Decoder``."""
        head = file.read(26)
        file.seek(0)
        if not head:
            raise Unreadable("the file is empty (0 bytes)")
        if head.startswith(b"\xff\xd8\xff"):
            return _decode_jpeg(bytearray(file.read()))
        pages = limits.require_bounded_tiff(file)
        layout = tiff_layouts.tiff_layout(file) if head[:4] in limits.TIFF_MAGIC else None
        if layout is not None:
            tiff_layouts.require_picture(layout)
            why = tiff_layouts.why_not_pillow(layout)
            if why is not None and not gdal.has_rasterio():
                raise Unreadable(
                    f"it is a TIFF with {why}, which Pillow does not read; with rasterio it is read ({gdal.INSTALL})",
                    tiff_layouts.NAME_BANDS,
                )
            # Pillow divides the colours by associated alpha, which loses what is dark.
            if why is not None or (layout.has_associated_alpha and gdal.has_rasterio()):
                picture = _decode_with_gdal(file, layout)
            else:
                picture = _decode_with_pillow(file, head, layout)
            return _with_shown(picture, file, layout, pages.have_mask).of_several(pages.are_several)
        return _decode_with_pillow(file, head, None).of_several(pages.are_several)

    def _read(self, path: str | Path) -> Picture:
        pixels = path.rgb() if isinstance(path, PathInArchive) else None
        return super()._read(path) if pixels is None else Picture(torch.from_numpy(pixels).permute(2, 0, 1))


RGB_DECODER = RgbDecoder()


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
    return RGB_DECODER.read(path)


def decode_or_reason(path: str | Path) -> Tensor | str:
    """The image as ``decode_rgb`` gives it, or the reason why it refuses the file, without its path."""
    return RGB_DECODER.read_or_reason(path)


def _decode_jpeg(data: bytearray) -> Picture:
    header = _jpeg_header(data)
    is_whole = True
    if header is not None:
        limits.refuse_bomb(header.width, header.height)  # torchvision has no limit of its own
        is_whole = pil_pixels.pixel_step(header.width, header.height) == 1
        if data.count(b"\xff\xda") > _MAX_SCANS:  # in compressed pixels an ff is never followed by da
            raise Unreadable(f"it is a JPEG of more than {_MAX_SCANS} scans, made to keep decoders busy")
    # Versions of torchvision differ in how they turn CMYK into RGB, hence Pillow's for all.
    if decode_jpeg is not None and header is not None and header.components != 4 and is_whole:
        # Pillow then reads what torchvision refuses, or gives a better reason.
        with contextlib.suppress(RuntimeError), limits.one_large_at_a_time(header.width * header.height):
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


def _decode_with_gdal(file: BinaryIO, layout: tiff_layouts.TiffLayout) -> Picture:
    colours = gdal.with_gdal(
        file, lambda source, num_bytes: gdal.colours_of(source, num_bytes, layout.inverts), ("GTiff",)
    )
    pixels, alpha = colours.as_bytes()
    kind = ""
    if alpha is not None and not layout.has_associated_alpha:
        pixels, kind = pil_pixels.composite(pixels, alpha, layout)
    return _picture(gdal.turned(pixels, layout.orientation), colours.bits, kind, layout)


def _decode_with_pillow(file: BinaryIO, head: bytes, layout: tiff_layouts.TiffLayout | None) -> Picture:
    try:
        with Image.open(file, formats=_FORMATS) as image:
            image_format = image.format
            limits.refuse_bomb(*image.size)
            limits.refuse_hollow(file.seek(0, io.SEEK_END), image.width, image.height, len(image.getbands()))
            if head[:4] == b"\x89PNG" and head[24:26] == b"\x10\x02" and any(_colour_key(image)):
                # Pillow compares the 16-bit colour with the 8-bit pixels; only black comes out right.
                raise Unreadable("it is a 16-bit RGB PNG with a transparent colour", pil_pixels.CONVERT)
            with limits.one_large_at_a_time(math.prod(image.size)):
                bits = _bits_of(image, head, layout)
                pixels, alpha = pil_pixels.rgb_of(_loaded(image), layout, image_format)
            has_frames = _has_frames(image)
    except UnidentifiedImageError:
        if head.startswith(gdal.JPEG2000_MAGIC):
            raise Unreadable(
                "it is a JPEG 2000 of a kind that Pillow does not read", tiff_layouts.NAME_BANDS
            ) from None
        kinds = "JPEG, PNG, TIFF, WebP, BMP, GIF or JPEG 2000"
        raise Unreadable(f"it is no {kinds} image, or its header is cut short or damaged") from None
    except Image.DecompressionBombError as error:
        raise limits.too_large(str(error)) from None
    except pil_pixels.PILLOW_ERRORS as error:
        detail = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise Unreadable(f"it is cut short or damaged ({detail})") from None
    return _picture(pixels, bits, alpha, layout).of_several(has_frames)


def _with_shown(picture: Picture, file: BinaryIO, layout: tiff_layouts.TiffLayout, has_mask: bool) -> Picture:
    """The picture, with how much of it the file declares as missing and nothing here leaves out."""
    nodata, has_mask = layout.nodata_as_byte, has_mask and gdal.has_rasterio()  # Pillow reads no masks
    if nodata is None and not has_mask:
        return picture
    pixels = picture.pixels.permute(1, 2, 0).numpy()
    missing = (pixels == (-1 if nodata is None else nodata)).all(axis=-1)
    if has_mask:
        with contextlib.suppress(Unreadable):
            missing |= gdal.with_gdal(file, lambda source, _: _masked(source, layout, missing.shape), ("GTiff",))
    count = np.count_nonzero(missing & pixels.any(axis=-1))
    if count < _LEAST_SHOWN * missing.size:
        return picture
    return picture._replace(traits=picture.traits._replace(shown=max(1, round(100 * count / missing.size))))


def _masked(source: Any, layout: tiff_layouts.TiffLayout, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Where the mask of a TIFF says that nothing is there, bool ``[H, W]`` as its picture of that shape."""
    turned = gdal.turned(source.dataset_mask()[..., None], layout.orientation)[..., 0] == 0
    return turned if turned.shape == shape else np.zeros(shape, bool)  # of very large images the picture is smaller


def _has_frames(image: Image.Image) -> bool:
    """Whether it is an animation; damage behind the first frame, which is read already, does not matter."""
    with contextlib.suppress(*pil_pixels.PILLOW_ERRORS):
        return image.format != "TIFF" and bool(getattr(image, "is_animated", False))
    return False


def _picture(pixels: NDArray[np.uint8], bits: int, alpha: str, layout: tiff_layouts.TiffLayout | None) -> Picture:
    """The image ``[H, W, 3]`` with its traits."""
    levels = int(pixels.max()) + 1 if bits > 8 else 0
    scaling, marks = ((), ()) if layout is None else (layout.scaling, layout.marks)
    depth = "8-bit" if bits <= 8 else f"{bits}-bit"
    traits = Traits(depth, alpha, scaling=scaling, levels=levels, marks=marks)
    return Picture(torch.from_numpy(pixels).permute(2, 0, 1), traits)


def _bits_of(image: Image.Image, head: bytes, layout: tiff_layouts.TiffLayout | None) -> int:
    if layout is not None:
        return max(layout.bits)
    if head[:4] == b"\x89PNG":
        return head[24]
    return 16 if image.mode.startswith("I;16") else 8


def _loaded(image: Image.Image) -> Image.Image:
    """The pixels, upright; of images above ``PIL.Image.MAX_IMAGE_PIXELS`` every n-th row and column."""
    width, height = image.size
    step = pil_pixels.pixel_step(width, height)
    limits.tell_reduced(width, height, step)
    if step > 1:
        image.draft(None, (width // step, height // step))  # JPEG's own way; nothing happens for other formats
    return pil_pixels.upright(image)


def _colour_key(image: Image.Image) -> tuple[int, ...]:
    key = image.info.get("transparency")
    return key if isinstance(key, tuple) else ()
