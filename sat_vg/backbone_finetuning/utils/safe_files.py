"""Files that are either whole or not there: temporary file, sync, rename.

A temporary file or folder lies beside what it becomes, as ``.NAME.unfinished.tmp``, and is locked by the process that
writes it. A killed process's lock is gone, so the next one that writes the same removes what was left; of two that
write the same at a time, the second takes another name (``.NAME.PID-RANDOM.tmp``).
"""

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from sat_vg.backbone_finetuning.utils.file_locks import is_abandoned, is_at, lock_file


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file that appears under ``path`` only once it is complete and on the disk.

    The file from before stays until the rename; on an error the temporary file is removed.

    Raises:
        OSError: the folder cannot be written to or the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, lock = _claim(path, _new_file)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        if is_at(lock, temporary):  # else it was renamed, and another process's file is there
            temporary.unlink()
        os.close(lock)
    sync(path.parent)


@contextmanager
def folder_aside(path: Path) -> Iterator[Path]:
    """A new folder beside ``path``, for this user alone, that is removed at the end, unless it was renamed.

    Raises:
        OSError: the folder around it cannot be written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, lock = _claim(path, lambda folder: folder.mkdir(mode=0o700))
    try:
        yield temporary
    finally:
        if is_at(lock, temporary):
            shutil.rmtree(temporary, ignore_errors=True)
        os.close(lock)


def remove_unfinished(folder: Path, patterns: Iterable[str]) -> None:
    """Remove what killed processes left of files with such names; what is still being written stays.

    Args:
        folder: where.
        patterns: of the names, as in ``Path.glob``; ``glob.escape`` a name that is meant as it is.
    """
    for pattern in patterns:
        for left in folder.glob(f".{pattern}.*.tmp"):
            remove_if_abandoned(left)


def sync(path: Path) -> None:
    """Bring a file to the disk, or the names in a folder, where its file system can."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)):
            raise
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with atomic_write(path) as file:
        file.write(text.encode("utf-8"))


def _new_file(path: Path) -> None:
    path.open("xb").close()


def _claim(path: Path, make: Callable[[Path], None]) -> tuple[Path, int]:
    """Make a temporary file or folder, and lock it: its path, and the open lock."""
    own = path.with_name(f".{path.name}.unfinished.tmp")
    while True:
        try:
            make(own)
        except FileExistsError:
            if not remove_if_abandoned(own):
                own = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
            continue
        with suppress(FileNotFoundError):  # here, too: another process took it for abandoned before it was locked
            lock = os.open(own, os.O_RDONLY)
            if lock_file(lock) is not False and is_at(lock, own):
                return own, lock
            os.close(lock)


def remove_if_abandoned(path: Path) -> bool:
    """Remove a temporary file or folder whose writer has ended; returns whether it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0))
    except FileNotFoundError:
        return True
    except OSError:  # a link, or another user's
        return False
    try:
        if is_abandoned(descriptor) and is_at(descriptor, path):
            with suppress(OSError):  # it may not be removed, so another name is taken
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return not path.exists()
    finally:
        os.close(descriptor)
