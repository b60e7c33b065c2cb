"""Features of an extraction before they become one file: a folder beside it, from which a killed extraction goes on.

It holds the numbers of each column in a plain file, row after row, and ``progress.json``: how many images are done,
and a hash of these images. Progress is saved after the numbers are on the disk, and rows behind it are dropped, so an
extraction that is stopped at any instant goes on with neither a gap nor a row twice.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sat_vg.backbone_finetuning.data.reading.files import stamp_of_image
from sat_vg.backbone_finetuning.data.sources.source import ImageList
from sat_vg.backbone_finetuning.utils.json_reading import read_json
from sat_vg.backbone_finetuning.utils.regular_files import open_regular
from sat_vg.backbone_finetuning.utils.safe_files import remove_unfinished, write_text

PROGRESS = "progress.json"
_SAVE_EVERY_S = 1.0
_MOST_PROGRESS_BYTES = 2**30


def map_numbers(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], writable: bool = False) -> np.ndarray:
    """Map a file of numbers, which may be larger than the memory and be unlinked; changes go into a writable one.

    Raises:
        OSError: it is not there, or no regular file.
        ValueError: it has another length.
    """
    with open_regular(path, os.O_RDWR if writable else os.O_RDONLY) as file:
        size = os.fstat(file.fileno()).st_size
        if size != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{str(path)!r} has {size} bytes")
        # "c" (copy on write): torch wants memory that could be written to.
        return np.memmap(file, dtype, mode="r+" if writable else "c", shape=shape)


@dataclass
class Progress:
    """How far an extraction is."""

    settings: str  # says what decides the numbers: weights, stages, number formats
    done: int = 0  # images that were read, from the first on
    seen: str = ""  # hash of these images' paths, labels, sizes and times of change
    # place and reason of each of them that could not be read; the others are rows of the spool
    left_out: list[tuple[int, str]] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Images in the spool."""
        return self.done - len(self.left_out)


def hash_of_images(images: ImageList, count: int | None = None) -> str:
    """A hash of the first images' paths, labels, sizes, inodes and times; of all, if ``count`` is not given."""
    seen = ""
    for place in range(len(images) if count is None else count):
        seen = _chained(seen, images, place)
    return seen


def _chained(before: str, images: ImageList, place: int) -> str:
    path, label = images.paths[place], images.labels[place] if images.labels else None
    try:
        found = stamp_of_image(path)
    except (OSError, ValueError):
        found = None
    text = f"{before}\n{(path, label, found)!r}"
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


class Spool:
    """Rows of arrays on the disk, and how many of them count.

    The folder must exist when the spool is opened. ``columns`` are the shapes of one image's entry, by name;
    ``settings`` are what decides the numbers: rows that were made with others are dropped.
    """

    def __init__(self, folder: Path, columns: Mapping[str, tuple[int, ...]], dtype: str, settings: str) -> None:
        self.folder, self.columns, self.dtype = folder, dict(columns), np.dtype(dtype)
        self.progress = Progress(settings)
        self._paths = {name: folder / f"{number}.raw" for number, name in enumerate(columns)}
        self._files: dict[str, BinaryIO] = {}
        self._saved_at = -np.inf

    @property
    def row_bytes(self) -> int:
        """Of one image in all columns."""
        return sum(map(self._bytes_of, self.columns))

    def _bytes_of(self, name: str) -> int:
        return math.prod(self.columns[name]) * self.dtype.itemsize

    def open(self, images: ImageList) -> None:
        """Get ready to append, behind the rows of an earlier run where these are the first of ``images``."""
        remove_unfinished(self.folder, [PROGRESS])
        earlier = self._read_progress()
        if earlier is not None and earlier.done <= len(images):
            is_whole = all(
                path.is_file() and path.stat().st_size >= earlier.rows * self._bytes_of(name)
                for name, path in self._paths.items()
            )
            if is_whole and earlier.seen == hash_of_images(images, earlier.done):
                self.progress = earlier
        for name, path in self._paths.items():
            if not path.is_file():
                path.unlink(missing_ok=True)  # a pipe, or a link that leads nowhere
                path.touch()
            file = self._files[name] = path.open("r+b", buffering=0)
            file.truncate(self.progress.rows * self._bytes_of(name))
            file.seek(0, os.SEEK_END)

    def _read_progress(self) -> Progress | None:
        """Of an earlier run with the same settings; None where there is none, or nothing that can be used."""
        try:
            content = read_json(self.folder / PROGRESS, _MOST_PROGRESS_BYTES)
            left_out = [(place, str(reason)) for place, reason in content["left_out"]]
            found = Progress(content["settings"], content["done"], content["seen"], left_out)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        places = [place for place, _ in left_out]
        if not all(type(number) is int for number in (found.done, *places)):
            return None
        is_sound = places == sorted(set(places)) and all(0 <= place < found.done for place in places)
        return found if is_sound and found.settings == self.progress.settings and found.rows >= 0 else None

    def append(self, arrays: Mapping[str, np.ndarray], images: ImageList, reasons: Sequence[str | None]) -> None:
        """Append the rows ``[rows, *columns[name]]`` of the images that were read next; now and then save progress.

        ``reasons`` say of each of these images why it could not be read, or None. Raises OSError where the disk is
        full.
        """
        for name, file in self._files.items():
            array = np.ascontiguousarray(arrays[name], dtype=self.dtype)
            assert array.shape[1:] == self.columns[name], (name, array.shape)
            rest = memoryview(array.tobytes())
            while rest:  # an unbuffered file may take less than it is given
                rest = rest[file.write(rest) :]
        progress = self.progress
        for reason in reasons:
            if reason is not None:
                progress.left_out.append((progress.done, reason))
            progress.seen = _chained(progress.seen, images, progress.done)
            progress.done += 1
        if time.monotonic() - self._saved_at >= _SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        """Bring the rows, and then the progress, to the disk. Raises OSError where the disk is full."""
        for file in self._files.values():
            os.fsync(file.fileno())
        write_text(self.folder / PROGRESS, json.dumps(asdict(self.progress)))
        self._saved_at = time.monotonic()

    def close(self) -> None:
        """Close the files; they stay."""
        while self._files:
            self._files.popitem()[1].close()

    def arrays(self) -> dict[str, np.ndarray]:
        """The rows of each column, ``[rows, …]``, mapped into memory; there must be one."""
        rows = self.progress.rows
        return {
            name: map_numbers(path, self.dtype, (rows, *self.columns[name])) for name, path in self._paths.items()
        }

    def remove(self) -> None:
        """Remove the spool's files."""
        for path in (*self._paths.values(), self.folder / PROGRESS):
            path.unlink(missing_ok=True)
