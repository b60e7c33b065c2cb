"""Locks of open files that the operating system takes back, and whether a process is still there."""

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if sys.platform != "win32":
    import fcntl

_LONGEST_WORK_S = 24 * 3600  # where the file system locks nothing


def lock_file(descriptor: int, wait: bool = False) -> bool | None:
    """Lock an open file or folder for this process alone, for as long as it stays open.

    Args:
        descriptor: of the file.
        wait: until it is free.

    Returns:
        Whether the lock was got; None where the operating system or the file system has none to give.
    """
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF):
            return None
        raise
    return True


@contextmanager
def alone_with(path: Path) -> Iterator[bool]:
    """Wait for a lock file, which is made, and hold its lock; false where the file system locks nothing.

    Raises:
        OSError: the file cannot be made.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        yield bool(lock_file(descriptor, wait=True))
    finally:
        os.close(descriptor)


def is_abandoned(descriptor: int) -> bool:
    """Whether the process that locked a file or folder has ended; this takes the lock."""
    is_free = lock_file(descriptor)
    return time.time() - os.fstat(descriptor).st_mtime > _LONGEST_WORK_S if is_free is None else is_free


def is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one that lies at a path, which is not followed if it is a link."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def is_alive(pid: Any) -> bool:
    """Whether a number, as read from a file, is that of a running process of this host."""
    if type(pid) is not int or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
