"""What large images may cost: one is decoded at a time, the largest at a fraction of their size, hollow ones not."""

import contextlib
import math
import sys
import threading
from functools import cache

from PIL import Image
from torch.utils.data import get_worker_info
from tqdm import tqdm

from sat_vg.backbone_finetuning.data.reading.unreadable import Unreadable
from sat_vg.backbone_finetuning.utils.terminal import speaks

_LARGE_VALUES = 2**24
_LARGE_IMAGES = threading.RLock()
_MOST_EXPANSION = 2000  # bytes of pixels to one of the file; deflate, LZW and JPEG reach 1500 on images of one value


def one_large_at_a_time(num_values: int) -> contextlib.AbstractContextManager[object]:
    """Keep other threads from decoding a large image, or reading a large file, meanwhile.

    Many threads check images: without this, so many images just below the limits would be held at once.
    """
    return _LARGE_IMAGES if num_values > _LARGE_VALUES else contextlib.nullcontext()


def refuse_bomb(width: int, height: int) -> None:
    """Refuse an image of more than twice ``PIL.Image.MAX_IMAGE_PIXELS``, where Pillow itself refuses.

    Raises:
        Unreadable: names the limit.
    """
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > 2 * limit:
        raise too_large(f"{width} x {height} pixels, the limit is {2 * limit} pixels")


def refuse_hollow(num_bytes: int, width: int, height: int, pixel_bytes: int) -> None:
    """Refuse a large image whose file is too short to hold anything but one value: sparse, or a bomb.

    Args:
        num_bytes: of the file.
        width: in pixels.
        height: in pixels.
        pixel_bytes: of one decoded pixel in all bands of the file.

    Raises:
        Unreadable: names both sizes.
    """
    decoded = width * height * pixel_bytes
    if width * height > _LARGE_VALUES and decoded > _MOST_EXPANSION * num_bytes:
        raise too_large(f"{width} x {height} pixels, {decoded // 2**20} MiB, in a file of {num_bytes} bytes")


def too_large(detail: str) -> Unreadable:
    """An image that would take too much memory or time; ``detail`` says how large it is."""
    return Unreadable(f"it is too large, perhaps a decompression bomb ({detail})", "cut it into smaller tiles")


def step_within(num_values: int, most: int | None) -> int:
    """Read each so-manieth row and column, and at most ``most`` values are left; None is no limit."""
    return 1 if most is None or num_values <= most else math.ceil(math.sqrt(num_values / most))


@cache
def tell_reduced(width: int, height: int, step: int) -> None:
    """Say once for each size that such images are read at a fraction of it."""
    if speaks() and get_worker_info() is None:
        text = f"note: images of {width} x {height} pixels are read at 1/{step} of their width and height"
        tqdm.write(text, file=sys.stderr)
