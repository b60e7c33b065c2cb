"""Bounds on the cost of reading an image: its size, the directories of a TIFF, large images at a time."""

import contextlib
import struct
import sys
import threading
from collections.abc import Iterator
from functools import cache
from typing import BinaryIO, NamedTuple

from PIL import Image
from torch.utils.data import get_worker_info
from tqdm import tqdm

from sat_vg.backbone_finetuning.utils.terminal import speaks
from sat_vg.backbone_finetuning.utils.unreadable import COPY_AGAIN, Unreadable

_LARGE_VALUES = 2**24
_LARGE_IMAGES = threading.RLock()
_MOST_EXPANSION = 2000  # bytes of pixels to one of the file; deflate, LZW and JPEG reach 1500 on images of one value
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MOST_PAGES = 4096  # overviews and masks count too; libtiff walks through all of them whatever is read
_MASK = 4
_SUBFILE_TYPE, _NO_PAGE = 254, 1 | _MASK  # a tag, and its bits of overviews and masks
_MOST_TAG_BYTES = 2**25  # the offsets of four million tiles
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}


def one_large_at_a_time(num_values: int) -> contextlib.AbstractContextManager[object]:
    """Keep other threads from decoding a large image, or reading a large file, meanwhile.

    Many threads check images: without this, as many images just below the limits would be held at once.
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

    ``pixel_bytes`` are those of one decoded pixel in all bands.

    Raises:
        Unreadable: names both sizes.
    """
    decoded = width * height * pixel_bytes
    if width * height > _LARGE_VALUES and decoded > _MOST_EXPANSION * num_bytes:
        raise too_large(f"{width} x {height} pixels, {decoded // 2**20} MiB, in a file of {num_bytes} bytes")


def too_large(detail: str) -> Unreadable:
    """An image that would take too much memory or time; ``detail`` says how large it is."""
    return Unreadable(f"it is too large, perhaps a decompression bomb ({detail})", "cut it into smaller tiles")


@cache
def tell_reduced(width: int, height: int, step: int) -> None:
    """Say once for each size that such images are read at a fraction of it; nothing where ``step`` is 1."""
    if step > 1 and speaks() and get_worker_info() is None:
        text = f"note: images of {width} x {height} pixels are read at 1/{step} of their width and height"
        tqdm.write(text, file=sys.stderr)


class TiffPages(NamedTuple):
    """What a TIFF holds beside the image that is read; false for other files."""

    are_several: bool  # overviews and masks do not count
    have_mask: bool


def require_bounded_tiff(file: BinaryIO) -> TiffPages:
    """Refuse a TIFF of so many pages, or of so long a tag, that only listing them takes long; leaves it at its start.

    Other files, and TIFFs that are cut short, are left to their readers.

    Raises:
        Unreadable: names the limit.
    """
    file.seek(0)
    magic, subtypes = file.read(4), list[int]()
    if magic in TIFF_MAGIC:
        with contextlib.suppress(struct.error):  # cut short
            subtypes.extend(_walk(file, "<" if magic[:2] == b"II" else ">", is_big=b"+" in magic))
    file.seek(0)
    num_pages = sum(not subtype & _NO_PAGE for subtype in subtypes)
    return TiffPages(num_pages > 1, any(subtype & _NO_PAGE == _MASK for subtype in subtypes))


def _walk(file: BinaryIO, order: str, is_big: bool) -> Iterator[int]:
    """Of each directory the bits that say whether it is an overview or a mask."""
    count_format, entry_format, offset_format = ("Q", "HHQ8s", "Q") if is_big else ("H", "HHI4s", "I")
    file.seek(8 if is_big else 4)
    (offset,) = _unpack(file, order + offset_format)
    seen = {0}
    while len(seen) <= _MOST_PAGES:
        if offset in seen:  # the end, or a loop
            return
        seen.add(offset)
        file.seek(offset)
        (count,) = _unpack(file, order + count_format)
        entry_bytes = struct.calcsize(order + entry_format)
        if count * entry_bytes > _MOST_TAG_BYTES:
            raise Unreadable(f"its header claims {count} tags", COPY_AGAIN)
        entries = file.read(count * entry_bytes)
        subtype = 0
        for tag, kind, length, value in struct.iter_unpack(order + entry_format, entries):
            if length * _TYPE_BYTES.get(kind, 1) > _MOST_TAG_BYTES:
                limit = f"the limit is {_MOST_TAG_BYTES} bytes"
                raise Unreadable(f"its header has a tag (number {tag}) of {length} values; {limit}", COPY_AGAIN)
            if tag == _SUBFILE_TYPE:
                subtype = int.from_bytes(value[: _TYPE_BYTES.get(kind, 4)], "little" if order == "<" else "big")
        yield subtype
        (offset,) = _unpack(file, order + offset_format)
    raise Unreadable(f"it has more than {_MOST_PAGES} pages", "split it into files of one page")


def _unpack(file: BinaryIO, form: str) -> tuple[int, ...]:
    return struct.unpack(form, file.read(struct.calcsize(form)))
