"""PNG and TIFF files byte by byte, with what Pillow itself would not write."""

import struct
import zlib

import numpy as np


def write_png(path, array, colour_type, *, depth=16, transparent=b""):
    height, width = array.shape[:2]
    if depth < 8:
        bits = np.unpackbits(array.astype(np.uint8)[..., None], axis=-1)[..., -depth:]
        rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in bits)
    else:
        rows = b"".join(b"\0" + row.astype(f">u{depth // 8}").tobytes() for row in array)

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0))
        + (chunk(b"tRNS", transparent) if transparent else b"")
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def write_tiff(path, array, photometric, *, sample_format=1, extra=(), order="<"):
    """An uncompressed TIFF of ``[H, W, bands]``, with tags that Pillow itself would not write."""
    height, width, bands = array.shape
    bits = [array.dtype.itemsize * 8] * bands
    data = array.astype(array.dtype.newbyteorder(order)).tobytes()
    tags = [(256, [width]), (257, [height]), (258, bits), (259, [1]), (262, [photometric]), (273, [0])]
    tags += [(277, [bands]), (278, [height]), (279, [len(data)])]
    tags += [(338, list(extra))] if extra else []
    tags += [(339, [sample_format] * bands)]
    start = 8 + 2 + 12 * len(tags) + 4
    tail = b""
    entries = b""
    for tag, values in tags:
        if tag == 273:  # the pixels come first after the directory
            values = [start]
        packed = struct.pack(f"{order}{len(values)}H", *values)
        if len(packed) > 4:
            offset = start + len(data) + len(tail)
            tail += packed + b"\0" * (len(packed) % 2)
            packed = struct.pack(f"{order}I", offset)
        entries += struct.pack(f"{order}HHI", tag, 3, len(values)) + packed.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    path.write_bytes(head + entries + b"\0" * 4 + data + tail)
