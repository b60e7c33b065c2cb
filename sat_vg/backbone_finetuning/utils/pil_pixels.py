"""Pixels of Pillow images as 8-bit RGB: by the same rules when files are read and when a user hands an image over."""

import contextlib
import math
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sat_vg.backbone_finetuning.utils.tiff_layouts import TiffLayout
from sat_vg.backbone_finetuning.utils.unreadable import Unreadable

CONVERT = "convert it to 8-bit RGB"
# What Pillow's parsers raise on damaged files.
PILLOW_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, EOFError, RuntimeError,
    struct.error, zlib.error,
)  # fmt: skip
_RGB_MODES = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LA", "PA", "RGBA", "RGBa"})
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_OPAQUE = 3  # full values to one in between: alpha with soft edges
_LOSSY = 5  # levels by which lossy compression may move 0 or 255


def step_within(num_values: int, most: int | None) -> int:
    """The smallest step such that every step-th row and column have ``most`` values at the most; None: no limit."""
    return 1 if most is None or num_values <= most else math.ceil(math.sqrt(num_values / most))


def pixel_step(width: int, height: int) -> int:
    """The step at which an image above ``PIL.Image.MAX_IMAGE_PIXELS`` is read."""
    return step_within(width * height, Image.MAX_IMAGE_PIXELS)


def upright(image: Image.Image) -> Image.Image:
    """The image turned by its EXIF orientation, of a very large one every ``pixel_step``-th row and column."""
    _scale_colour_key(image)
    image.load()  # which turns TIFFs, and then they have no orientation any more
    orientation = None
    with contextlib.suppress(*PILLOW_ERRORS):  # damaged EXIF: the pixels are whole all the same
        orientation = image.getexif().get(_ORIENTATION)
    if orientation in _TURNS:
        image = image.transpose(_TURNS[orientation])
    step = pixel_step(*image.size)
    if step == 1:
        return image
    return image.resize([math.ceil(side / step) for side in image.size], Image.Resampling.NEAREST)


def _scale_colour_key(image: Image.Image) -> None:
    """Of a grey PNG of 2 or 4 bits, spread the transparent value over 0 to 255, as Pillow does with the pixels."""
    key, tiles = image.info.get("transparency"), getattr(image, "tile", None)  # none where the pixels are loaded
    if tiles and image.format == "PNG" and isinstance(key, int) and tiles[0][3] in ("L;2", "L;4"):
        image.info["transparency"] = key * 255 // (2 ** int(tiles[0][3][-1]) - 1)


def rgb_of(image: Image.Image, layout: TiffLayout | None, image_format: str | None) -> tuple[NDArray[np.uint8], str]:
    """RGB of an image as uint8 ``[H, W, 3]``, and the kind of its alpha (see ``composite``).

    Args:
        image: upright.
        layout: of its file, if that is a TIFF.
        image_format: of its file.

    Raises:
        Unreadable: its pixels have no plain 8-bit reading.
    """
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
        raise Unreadable(f"it has {kind} pixels, which have no plain 8-bit RGB reading", CONVERT)
    if image.has_transparency_data:
        rgba = np.asarray(image.convert("RGBA"))
        return composite(rgba[..., :3], rgba[..., 3], layout)
    return np.array(image.convert("RGB")), ""


def composite(
    rgb: NDArray[np.uint8], alpha: NDArray[np.uint8], layout: TiffLayout | None
) -> tuple[NDArray[np.uint8], str]:
    """The colours on black where alpha is transparency, else as they are.

    Returns:
        uint8 ``[H, W, 3]``, and the kind of alpha: ``soft`` (it has values between 0 and full), ``ignored`` (by its
        values no transparency), or empty.
    """
    if layout is not None and layout.is_geodata and not is_transparency(alpha, is_lossy=layout.is_lossy):
        return np.array(rgb), "ignored" if rgb.any() else ""
    weighted = rgb.astype(np.uint16) * alpha[..., None]  # at most 65025, so no overflow
    composited: NDArray[np.uint8] = ((weighted + 127) // 255).astype(np.uint8)
    is_soft = bool(((alpha > 0) & (alpha < 255)).any()) and not (layout is not None and layout.is_lossy)
    return composited, "soft" if is_soft else ""


def is_transparency(alpha: NDArray[Any], full: float = 255, is_lossy: bool = False) -> bool:
    """Whether a band can be alpha, and not near infrared that is marked as alpha: whether it is nearly binary.

    Args:
        alpha: the band.
        full: its largest possible value.
        is_lossy: it was compressed with losses.
    """
    slack = _LOSSY if is_lossy else 0
    opaque, empty = np.count_nonzero(alpha >= full - slack), np.count_nonzero(alpha <= slack)
    return bool(opaque > 0 and opaque >= _OPAQUE * (alpha.size - opaque - empty))
