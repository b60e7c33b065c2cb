"""A folder of what can be computed again, bounded in bytes, that several processes may use at a time.

An entry is a folder named by a key: a hash of all that its content depends on, so that an entry is never out of date.
It is built in a folder beside it (``safe_files.folder_aside``) and renamed once it is whole and on the disk; of two
processes that build the same entry the later one throws its own away. What a killed process left unfinished is
removed by the next one that builds.

An entry may be removed while it is used. On POSIX systems a file that is open or mapped stays whole until it is
closed, so open the files of an entry at once and keep them open.
"""

import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from sat_vg.backbone_finetuning.utils.file_locks import alone_with
from sat_vg.backbone_finetuning.utils.regular_files import read_bounded
from sat_vg.backbone_finetuning.utils.safe_files import folder_aside, remove_if_abandoned, sync

_KEY = re.compile(r"[0-9a-f]{16,128}")
_UNFINISHED = re.compile(r"\.[0-9a-f]{16,128}\..+\.tmp")
_LOCK = ".lock"
_RESERVED = ".reserved"  # in an unfinished entry: the bytes that it will take
_RESERVE_BYTES = 2 * 2**30  # of the disk's free space; other programs must not fail for a cache
_SMALL_SHARE = 100  # what takes up to a hundredth of the free space makes nothing else fail

T = TypeVar("T")


class NoRoom(NamedTuple):
    """Why nothing is built.

    Attributes:
        needed: bytes of the entry.
        free: bytes that it could have had, with everything that may be removed gone.
        bound: what sets them: the cache's own ``limit``, or the ``disk``.
    """

    needed: int
    free: int
    bound: Literal["limit", "disk"]


class _Entry(NamedTuple):
    used: int  # when, in ns
    num_bytes: int
    path: Path


def bytes_to_spare(free: int, total: int) -> int:
    """What one entry may take of a disk with ``free`` bytes of ``total``.

    All but a reserve of 2 GiB, or of a tenth of a small disk. On a disk that is full to the reserve, a small entry is
    built all the same: up to a hundredth of what is free, as refusing it would help no other program.
    """
    return max(free - min(_RESERVE_BYTES, total // 10), free // _SMALL_SHARE)


class BoundedCache:
    """Entries in a folder; what was used least recently is removed to make room.

    Args:
        folder: made once something is built; entries of several kinds may share it, and with it the bound.
        max_bytes: of all entries together. What was built under a larger bound stays until something is built.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes

    def find(self, key: str) -> Path | None:
        """The folder of an entry, which counts as used now; None if there is none.

        It can be gone at any time after: FileNotFoundError on opening its files means the same as None.
        """
        path = self._path_of(key)
        try:
            if path.is_symlink() or not path.is_dir():
                return None
        except OSError:  # another user's folder, or a name that is too long
            return None
        with suppress(OSError):  # a cache that may only be read is of use all the same
            os.utime(path)
        return path

    def load(self, key: str, read: Callable[[Path], T]) -> T | None:
        """What ``read`` makes of an entry; None where there is none, or a damaged one, which is removed."""
        folder = self.find(key)
        if folder is None:
            return None
        try:
            return read(folder)
        except (OSError, ValueError, KeyError, TypeError, EOFError, MemoryError):
            self.remove(key)
            return None

    def remove(self, key: str) -> None:
        """Remove an entry, if there is one, such as one that turned out to be damaged."""
        _remove(self._path_of(key))

    @contextmanager
    def building(self, key: str, num_bytes: int) -> Iterator[Path | NoRoom]:
        """Build an entry: files go into the folder that this gives, which is published on leaving the context.

        An exception that leaves the context is passed on, and nothing is published.

        Args:
            key: of the entry.
            num_bytes: that its files will take; others are removed to make room.

        Yields:
            The folder, or why there is no room; then there is nothing to build.

        Raises:
            OSError: the cache's folder cannot be written to, or the disk is full.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with ExitStack() as stack:
            with self._locked():
                place: Path | NoRoom | None = self._make_room(num_bytes)
                if place is None:
                    place = stack.enter_context(folder_aside(self._path_of(key)))
                    (place / _RESERVED).write_text(str(num_bytes))
            yield place
            if isinstance(place, Path):
                for path in (*place.rglob("*"), place):  # else a power cut may leave zeros in it
                    sync(path)
                self._publish(place, key)

    def num_bytes(self) -> int:
        """Of all entries."""
        return sum(entry.num_bytes for entry in self._entries())

    def _path_of(self, key: str) -> Path:
        assert _KEY.fullmatch(key), f"{key!r} is no hash"
        return self.folder / key

    def _locked(self) -> AbstractContextManager[bool]:
        """Keep other processes from counting, removing and publishing meanwhile, for milliseconds."""
        return alone_with(self.folder / _LOCK)

    def _publish(self, folder: Path, key: str) -> None:
        path = self._path_of(key)
        with self._locked():
            (folder / _RESERVED).unlink()
            if path.is_symlink() or not path.is_dir():
                path.unlink(missing_ok=True)  # a link or file in the place of an entry
            try:
                folder.rename(path)
            except OSError:
                if not path.is_dir():  # else another process was quicker
                    raise
        sync(self.folder)

    def _make_room(self, num_bytes: int) -> NoRoom | None:
        """Remove what was used least recently until so many bytes fit; nothing where they cannot."""
        promised = unwritten = 0
        for folder in self._matching(_UNFINISHED):
            if not remove_if_abandoned(folder):
                written, reserved = _size_of(folder), _reserved(folder)
                promised += max(written, reserved)
                unwritten += max(0, reserved - written)
        entries = self._entries()
        kept = sum(entry.num_bytes for entry in entries)
        disk = shutil.disk_usage(self.folder)
        free = max(0, disk.free - unwritten)
        if num_bytes > self.max_bytes - promised:
            return NoRoom(num_bytes, max(0, self.max_bytes - promised), "limit")
        with_all_gone = bytes_to_spare(free + kept, disk.total)
        if num_bytes > with_all_gone:
            return NoRoom(num_bytes, with_all_gone, "disk")
        for entry in sorted(entries):
            if kept + promised + num_bytes <= self.max_bytes and num_bytes <= bytes_to_spare(free, disk.total):
                break
            _remove(entry.path)
            kept, free = kept - entry.num_bytes, free + entry.num_bytes
        return None

    def _entries(self) -> list[_Entry]:
        found = []
        for path in self._matching(_KEY):
            with suppress(FileNotFoundError):  # another process removes it
                found.append(_Entry(path.stat().st_mtime_ns, _size_of(path), path))
        return found

    def _matching(self, names: re.Pattern[str]) -> list[Path]:
        # Other files in the folder are not the cache's to count or to remove.
        inside = list(self.folder.iterdir()) if self.folder.is_dir() else []
        return [path for path in inside if names.fullmatch(path.name) and path.is_dir() and not path.is_symlink()]


def _remove(path: Path) -> None:
    """Remove an entry at once, so that no process finds half of it."""
    doomed = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with suppress(OSError):  # another process removes it, or it may not be removed
        path.rename(doomed)
        if doomed.is_symlink() or not doomed.is_dir():
            doomed.unlink()
        shutil.rmtree(doomed, ignore_errors=True)


def _reserved(folder: Path) -> int:
    try:
        return int(read_bounded(folder / _RESERVED, 32))
    except (OSError, ValueError):
        return 0


def _size_of(folder: Path) -> int:
    """Bytes of all files within."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.lstat().st_size if not path.is_dir() else 0
    return total
