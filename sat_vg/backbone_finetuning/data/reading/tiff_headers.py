"""A look at a TIFF's directories before a library reads them: what they list is bounded."""

import contextlib
import struct
from typing import BinaryIO

from sat_vg.backbone_finetuning.data.reading.unreadable import COPY_AGAIN, Unreadable

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MOST_PAGES = 4096  # overviews and masks count too; libtiff walks through all of them whatever is read
_MOST_TAG_BYTES = 2**25  # the offsets of four million tiles
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}


def require_bounded_tiff(file: BinaryIO) -> None:
    """Refuse a TIFF of so many pages, or of so long a tag, that only listing them takes long; leaves it at its start.

    What is no TIFF, or cut short, is left to its reader to refuse.

    Raises:
        Unreadable: names the limit.
    """
    file.seek(0)
    magic = file.read(4)
    if magic in TIFF_MAGIC:
        with contextlib.suppress(struct.error):  # cut short
            _walk(file, "<" if magic[:2] == b"II" else ">", is_big=b"+" in magic)
    file.seek(0)


def _walk(file: BinaryIO, order: str, is_big: bool) -> None:
    count_format, entry_format, offset_format = ("Q", "HHQ8x", "Q") if is_big else ("H", "HHI4x", "I")
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
        for tag, kind, length in struct.iter_unpack(order + entry_format, entries):
            if length * _TYPE_BYTES.get(kind, 1) > _MOST_TAG_BYTES:
                limit = f"the limit is {_MOST_TAG_BYTES} bytes"
                raise Unreadable(f"its header has a tag (number {tag}) of {length} values; {limit}", COPY_AGAIN)
        (offset,) = _unpack(file, order + offset_format)
    raise Unreadable(f"it has more than {_MOST_PAGES} pages", "split it into files of one page")


def _unpack(file: BinaryIO, form: str) -> tuple[int, ...]:
    return struct.unpack(form, file.read(struct.calcsize(form)))
