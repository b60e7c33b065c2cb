"""Opening files that may be anything: a pipe would wait for ever, a device never end, a folder is none."""

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


class NotRegularFileError(OSError):
    """The path is that of a pipe, a socket, a device or the like."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(errno.EINVAL, "it is a pipe, a device or the like, not a file", str(path))


def open_regular(path: str | Path, flags: int = os.O_RDONLY) -> BinaryIO:
    """Open a file that has an end, without waiting where it is a pipe without a writer.

    Args:
        path: of the file; links are followed.
        flags: ``os.O_RDONLY`` or ``os.O_RDWR``; nothing is created.

    Raises:
        NotRegularFileError: it is a pipe, a device or the like.
        OSError: it is a folder, a link that leads nowhere or in a circle, not there, or may not be read.
        ValueError: the path cannot be one.
    """
    with contextlib.ExitStack() as undo:
        try:
            descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        except OSError as error:
            if error.errno == errno.ENXIO:  # a socket, or a pipe without a reader
                raise NotRegularFileError(path) from None
            raise
        undo.callback(os.close, descriptor)
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise NotRegularFileError(path)
        undo.pop_all()
        return os.fdopen(descriptor, "rb" if flags == os.O_RDONLY else "r+b")


def read_bounded(path: str | Path, most_bytes: int) -> bytes:
    """The content of a regular file, whose length is compared first.

    Raises:
        OSError: as ``open_regular``, or the file is longer.
        ValueError: the path cannot be one.
    """
    with open_regular(path) as file:
        is_longer = os.fstat(file.fileno()).st_size > most_bytes
        content = b"" if is_longer else file.read(most_bytes + 1)
    if is_longer or len(content) > most_bytes:  # it may grow meanwhile
        raise OSError(errno.EFBIG, f"it is longer than {most_bytes} bytes", str(path))
    return content
