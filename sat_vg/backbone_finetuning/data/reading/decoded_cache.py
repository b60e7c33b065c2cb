"""All images of a run decoded once, into one file that is mapped into memory: no epoch decodes them again.

The file holds the very pixels that ``decode_rgb`` gives, not resized and not compressed, one image after the other as
``[H, W, 3]``. On disk it is an entry of a ``BoundedCache`` under a hash of the fingerprints of all images: where one
has changed, was added or removed, there is nothing under the new hash, and another file is made.
"""

import hashlib
import io
import mmap
import os
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sat_vg.backbone_finetuning.configs.choices import Cache
from sat_vg.backbone_finetuning.data.reading.decoder import fingerprint
from sat_vg.backbone_finetuning.data.reading.decoding import decode_or_reason, decode_rgb
from sat_vg.backbone_finetuning.data.reading.threads import run_in_order
from sat_vg.backbone_finetuning.utils.bounded_cache import BoundedCache, NoRoom
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.machine_memory import machine_memory
from sat_vg.backbone_finetuning.utils.regular_files import open_regular, read_bounded
from sat_vg.backbone_finetuning.utils.terminal import progress

_FORMAT = b"sat_vg decoded images 1"  # raise it with any change of what follows
_PIXELS, _INDEX = "pixels.bin", "index.npy"
_INDEX_HEADER_BYTES = 128
_RESERVE_BYTES = 2 * 2**30  # of the memory; the training needs some too


@dataclass(frozen=True)
class Layout:
    """Where each image's pixels lie in the file; copies lie there once."""

    paths: list[str]  # one file for each row of the index
    index: NDArray[np.int64]  # int64 ``[N, 4]``: an image's fingerprint, its offset in bytes, its height and width
    rows: dict[str, int]  # of every path, copies included, its row in the index

    @property
    def num_bytes(self) -> int:
        """Of all pixels."""
        return int(_bytes_of(self.index).sum())

    @cached_property
    def key(self) -> str:
        """A hash of what the file holds, whatever the order of the images in it."""
        contents = np.sort(self.index[:, 0]).astype("<i8").tobytes()
        return hashlib.blake2b(_FORMAT + contents, digest_size=16).hexdigest()


class Reader(NamedTuple):
    """How images are read."""

    read: Callable[[str], Tensor]  # a file's path → its image, as ``decode_rgb`` gives it
    note: str | None  # a line for the user; None if images are decoded as asked


class _NotKeptError(Exception):
    """The decoded images cannot be kept, and why; a run goes on without."""


def lay_out(paths: Sequence[str], contents: Mapping[str, int], sizes: Mapping[str, tuple[int, int]]) -> Layout:
    """Put images into a file in the order of their paths, by their fingerprints, and their heights and widths."""
    row_of: dict[int, int] = {}
    rows: dict[str, int] = {}
    first: list[str] = []
    for path in paths:
        row = row_of.setdefault(contents[path], len(first))
        rows[path] = row
        if row == len(first):
            first.append(path)
    index = np.zeros((len(first), 4), np.int64)
    if first:
        index[:, 0] = [contents[path] for path in first]
        index[:, 2:] = [sizes[path] for path in first]
        index[1:, 1] = np.cumsum(_bytes_of(index))[:-1]
    return Layout(first, index, rows)


class DecodedImages:
    """Reads images from an open file of their pixels, which it closes. Worker processes get that file, not its path.

    The mapping is private: writing into an image changes it for this process, never in the file. Images that the
    file does not hold are decoded. For ``index`` and ``rows`` see ``Layout``.
    """

    def __init__(self, descriptor: int, index: NDArray[np.int64], rows: Mapping[str, int]) -> None:
        self._descriptor, self._index, self._rows = descriptor, index, rows
        weakref.finalize(self, os.close, descriptor)
        mapped = mmap.mmap(descriptor, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        self._pixels = torch.frombuffer(mapped, dtype=torch.uint8)

    def __call__(self, path: str) -> Tensor:
        """The image, uint8 ``[3, H, W]``, laid out in memory as ``[H, W, 3]``; a view of the mapping."""
        row = self._rows.get(path)
        if row is None:
            return decode_rgb(path)
        _, offset, height, width = self._index[row].tolist()
        return self._pixels.as_strided((3, height, width), (1, 3 * width, 3), offset)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (DupFd(self._descriptor), self._index, self._rows)


def _reopen(duplicate: Any, index: NDArray[np.int64], rows: Mapping[str, int]) -> DecodedImages:
    return DecodedImages(duplicate.detach(), index, rows)


def keep_decoded(mode: Cache, layout: Layout, cache: BoundedCache, *, is_read_once: bool = False) -> Reader:
    """Decode all images into one file, unless it is there already.

    Args:
        mode: ``"disk"`` keeps the file in ``cache``, for the next run too; ``"ram"`` in memory, for this run;
            ``"auto"`` as ``"disk"`` where that is a gain; ``"off"`` decodes images whenever they are read.
        layout: the images.
        cache: where the file is kept.
        is_read_once: the run reads every image once, so that ``"auto"`` makes no file for it.

    Raises:
        ConfigError: there is no room for what ``"ram"`` or ``"disk"`` asks for.
    """
    if not layout.num_bytes:
        return Reader(decode_rgb, None)
    try:
        return CACHES[mode](layout, cache, is_read_once)
    except _NotKeptError as problem:
        reason = str(problem)
    except OSError as error:
        reason = f"{error.strerror or error}; {in_words(layout.num_bytes)} were to be written"
    return Reader(decode_rgb, f"decoded images: not kept, every epoch decodes them anew ({reason})")


def in_words(num_bytes: int) -> str:
    """A number of bytes for people."""
    if num_bytes >= 10 * 2**30:
        return f"{num_bytes / 2**30:.1f} GiB"
    return f"{num_bytes / 2**20:.0f} MiB" if num_bytes >= 10 * 2**20 else f"{num_bytes / 2**10:.0f} KiB"


def _bytes_of(index: NDArray[np.int64]) -> NDArray[np.int64]:
    return 3 * index[:, 2] * index[:, 3]


def _in_memory(layout: Layout) -> Reader:
    memory, needed = machine_memory(), layout.num_bytes
    spare = max(0, memory.available - max(_RESERVE_BYTES, memory.total // 10))
    if needed > spare:
        raise ConfigError(
            f"cache = 'ram': the decoded images take {in_words(needed)} ({needed} bytes), and {in_words(spare)} "
            f"({spare} bytes) of memory are to spare; use --cache disk, auto or off"
        )
    if not hasattr(os, "memfd_create"):
        raise ConfigError("cache = 'ram': only Linux keeps files in memory without a name; use --cache disk or off")
    began = time.monotonic()
    # Without a name nothing of it outlives the process, and it is not bounded by the size of a container's /dev/shm.
    with open(os.memfd_create("sat_vg decoded images"), "w+b", buffering=0) as file:  # noqa: PTH123
        _fill(file.fileno(), layout)
        images = DecodedImages(os.dup(file.fileno()), layout.index, layout.rows)
    return Reader(images, f"decoded images: {in_words(needed)} in memory, made in {time.monotonic() - began:.1f} s")


def _where_quicker(layout: Layout, cache: BoundedCache, is_read_once: bool) -> Reader:
    # Reading pixels out of memory takes a twentieth of decoding a JPEG, a third of reading a BMP. From a disk it may
    # take longer than both, as there are five to ten times as many bytes.
    half = machine_memory().total // 2
    if layout.num_bytes > half:
        raise _NotKeptError(
            f"{in_words(layout.num_bytes)} are more than half of the memory, {in_words(half)}; on a quick disk "
            "--cache disk may pay all the same"
        )
    return _on_disk("auto", layout, cache, is_read_once)


def _on_disk(mode: Literal["auto", "disk"], layout: Layout, cache: BoundedCache, is_read_once: bool) -> Reader:
    where = f"decoded images: {in_words(layout.num_bytes)} in {cache.folder}"
    found = cache.load(layout.key, lambda folder: _open_entry(folder, layout))
    if found is not None:
        return Reader(found, f"{where}, found")
    if mode == "auto" and is_read_once:
        raise _NotKeptError("this run reads each of them once")
    began = time.monotonic()
    index_bytes = _INDEX_HEADER_BYTES + layout.index.nbytes
    with cache.building(layout.key, layout.num_bytes + index_bytes) as folder:
        if isinstance(folder, NoRoom):
            return _refuse(mode, folder, cache)
        with (folder / _PIXELS).open("x+b", buffering=0) as file:
            _fill(file.fileno(), layout)
            np.save(folder / _INDEX, layout.index, allow_pickle=False)
            # Open before anybody else can see the entry, or remove it.
            images = DecodedImages(os.dup(file.fileno()), layout.index, layout.rows)
    return Reader(images, f"{where}, made in {time.monotonic() - began:.1f} s")


CACHES: dict[Cache, Callable[[Layout, BoundedCache, bool], Reader]] = {
    "auto": _where_quicker,
    "ram": lambda layout, cache, is_read_once: _in_memory(layout),
    "disk": partial(_on_disk, "disk"),
    "off": lambda layout, cache, is_read_once: Reader(decode_rgb, None),
}


def _refuse(mode: Literal["auto", "disk"], no_room: NoRoom, cache: BoundedCache) -> Reader:
    needed, free = (f"{in_words(number)} ({number} bytes)" for number in (no_room.needed, no_room.free))
    if no_room.bound == "limit":
        enough = (10 * no_room.needed // 2**30 + 1) / 10
        why, remedy = f"--cache_gib allows {free}", f"allow --cache_gib {enough:g}"
    else:
        why = f"the disk of {str(cache.folder)!r} has {free} to spare"
        remedy = "make room there, or set SAT_VG_CACHE to a folder on another"
    if mode == "auto":
        raise _NotKeptError(f"they take {needed}, and {why}")
    raise ConfigError(
        f"cache = 'disk': the decoded images take {needed}, and {why}; {remedy}, or use --cache auto or off"
    )


def _open_entry(folder: Path, layout: Layout) -> DecodedImages:
    """The images of a layout, in any order; raises as ``BoundedCache.load`` expects where they are others."""
    content = read_bounded(folder / _INDEX, _INDEX_HEADER_BYTES + layout.index.nbytes)
    index = np.load(io.BytesIO(content), allow_pickle=False)
    if not isinstance(index, np.ndarray) or index.dtype != np.int64 or index.shape != layout.index.shape:
        raise ValueError("it is no index")
    ours, theirs = layout.index[layout.index[:, 0].argsort()], index[index[:, 0].argsort()]
    has_no_gaps = np.array_equal(index[:, 1], np.cumsum(_bytes_of(index)) - _bytes_of(index))
    if not has_no_gaps or not np.array_equal(ours[:, [0, 2, 3]], theirs[:, [0, 2, 3]]):
        raise ValueError("it holds other images")
    row_of = {content: row for row, content in enumerate(index[:, 0].tolist())}
    contents = layout.index[:, 0].tolist()
    rows = {path: row_of[contents[row]] for path, row in layout.rows.items()}
    with open_regular(folder / _PIXELS) as file:
        if os.fstat(file.fileno()).st_size != layout.num_bytes:
            raise ValueError("it has another length")
        return DecodedImages(os.dup(file.fileno()), index, rows)


def _fill(descriptor: int, layout: Layout) -> None:
    """Decode all images into an empty file.

    Raises:
        _NotKeptError: an image is not what it was when it was checked.
        OSError: there is no room.
    """
    if hasattr(os, "posix_fallocate"):  # fails at once where there is too little room
        os.posix_fallocate(descriptor, 0, layout.num_bytes)

    def write(path: str) -> None:
        content, offset, *size = layout.index[layout.rows[path]].tolist()
        image = decode_or_reason(path)
        if isinstance(image, str) or list(image.shape[1:]) != size or fingerprint(image) != content:
            raise _NotKeptError(f"{path!r} has changed since it was checked")
        rest = image.permute(1, 2, 0).reshape(-1).numpy().data
        while rest:  # the system takes 2 GiB at a time at the most
            written = os.pwrite(descriptor, rest, offset)
            rest, offset = rest[written:], offset + written

    bar = progress(total=len(layout.paths), desc="decoding images", unit="image")
    for _ in run_in_order(layout.paths, write, bar=bar):
        pass
