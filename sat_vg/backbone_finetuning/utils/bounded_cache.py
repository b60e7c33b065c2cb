"""A folder of what can be computed again, bounded in bytes, that several processes may use at a time.

An entry is a folder that is named by a key: a hash of all that its content depends on, so that an entry is never out
of date. It is built in a folder of another name beside it and renamed once it is whole and on the disk; of two
processes that build the same entry the later one throws its own away. What a killed process left unfinished is
removed by the next one that builds: a lock that the operating system takes back (``flock``) tells the two apart.

An entry may be removed while somebody uses it. On POSIX systems a file that is open or mapped stays whole until it is
closed, so whoever needs an entry opens its files at once and keeps them open.
"""

import contextlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

from sat_vg.backbone_finetuning.utils.file_locks import lock_file
from sat_vg.backbone_finetuning.utils.regular_files import read_bounded

_KEY = re.compile(r"[0-9a-f]{16,128}")
_UNFINISHED = re.compile(r"\.[0-9a-f]{16,128}\.[0-9a-f]{8}\.unfinished")
_LOCK = ".lock"
_BUILDER = ".builder"  # in an unfinished entry: locked by who builds it, with the bytes that it will take
_RESERVE_BYTES = 2 * 2**30  # of the disk's free space; what else goes on there must not fail for a cache
_SMALL_SHARE = 100  # what takes up to a hundredth of the free space makes nothing else fail
_LONGEST_BUILD_S = 24 * 3600  # where the file system locks nothing


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
    built all the same: up to a hundredth of what is free, as refusing it would spare nobody else anything.
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
        if path.is_symlink() or not path.is_dir():
            return None
        with contextlib.suppress(OSError):  # a cache that may only be read is of use all the same
            os.utime(path)
        return path

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
        with self._locked():
            no_room = self._make_room(num_bytes)
            if no_room is None:
                folder = _unfinished_name(self._path_of(key))
                folder.mkdir()
                builder = _take_lock(folder / _BUILDER, str(num_bytes))
        if no_room is not None:
            yield no_room
            return
        try:
            yield folder
            _sync(folder)
            self._publish(folder, key)
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # there is none any more where it was published
            os.close(builder)

    def num_bytes(self) -> int:
        """Of all entries."""
        return sum(entry.num_bytes for entry in self._entries())

    def _path_of(self, key: str) -> Path:
        assert _KEY.fullmatch(key), f"{key!r} is no hash"
        return self.folder / key

    def _publish(self, folder: Path, key: str) -> None:
        with self._locked():
            (folder / _BUILDER).unlink()
            if self._path_of(key).is_symlink() or not self._path_of(key).is_dir():
                self._path_of(key).unlink(missing_ok=True)  # no entry of ours, and in the way of one
            try:
                folder.rename(self._path_of(key))
            except OSError:
                if not self._path_of(key).is_dir():  # else somebody else was quicker
                    raise
        _sync_one(self.folder)

    def _make_room(self, num_bytes: int) -> NoRoom | None:
        """Remove what was used least recently until so many bytes fit; nothing where they cannot."""
        promised = unwritten = 0
        for folder in self._unfinished():
            if _is_abandoned(folder):
                shutil.rmtree(folder, ignore_errors=True)
            else:
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
            with contextlib.suppress(FileNotFoundError):  # somebody else removes it
                found.append(_Entry(path.stat().st_mtime_ns, _size_of(path), path))
        return found

    def _unfinished(self) -> list[Path]:
        return self._matching(_UNFINISHED)

    def _matching(self, names: re.Pattern[str]) -> list[Path]:
        # Whatever else lies in the folder is not ours to count or to remove.
        inside = list(self.folder.iterdir()) if self.folder.is_dir() else []
        return [path for path in inside if names.fullmatch(path.name) and path.is_dir() and not path.is_symlink()]

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes from counting, removing and publishing meanwhile, for milliseconds."""
        descriptor = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            lock_file(descriptor, wait=True)
            yield
        finally:
            os.close(descriptor)


def _unfinished_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.unfinished")


def _remove(path: Path) -> None:
    """Remove an entry; nobody finds half of it meanwhile."""
    doomed = _unfinished_name(path)
    with contextlib.suppress(OSError):  # somebody else removes it, or nobody may
        path.rename(doomed)
        if doomed.is_symlink() or not doomed.is_dir():
            doomed.unlink()
        shutil.rmtree(doomed, ignore_errors=True)


def _take_lock(path: Path, text: str) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    lock_file(descriptor)
    os.write(descriptor, text.encode())
    return descriptor


def _is_abandoned(folder: Path) -> bool:
    """Whether nobody builds this any more."""
    try:
        descriptor = os.open(folder / _BUILDER, os.O_RDWR)
    except OSError:  # it is about to be removed; what is being made is locked by then
        return True
    try:
        was_free = lock_file(descriptor)
        return was_free if was_free is not None else time.time() - folder.stat().st_mtime > _LONGEST_BUILD_S
    except FileNotFoundError:
        return True
    finally:
        os.close(descriptor)


def _reserved(folder: Path) -> int:
    try:
        return int(read_bounded(folder / _BUILDER, 32))
    except (OSError, ValueError):
        return 0


def _size_of(folder: Path) -> int:
    """Bytes of all files within."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.lstat().st_size if not path.is_dir() else 0
    return total


def _sync(folder: Path) -> None:
    # Otherwise a power cut may leave an entry that is whole by its size, with zeros in it.
    for path in (*folder.rglob("*"), folder):
        _sync_one(path)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
