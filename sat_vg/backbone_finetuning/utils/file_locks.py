"""Locks of open files that the operating system takes back, and whether a process is still there."""

import errno
import os
import sys
from typing import Any

if sys.platform != "win32":
    import fcntl


def lock_file(descriptor: int, wait: bool = False) -> bool | None:
    """Lock an open file for this process alone, for as long as it stays open.

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


def is_alive(pid: Any) -> bool:
    """Whether a number, as read from a file, is that of a running process of this host."""
    if type(pid) is not int or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
