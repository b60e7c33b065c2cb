"""Stamps of files that show a change without reading the content."""

import os
from pathlib import Path


def stamp_of(path: str | os.PathLike[str]) -> str:
    """Size, inode and times of a file; another content has another stamp.

    Size and time of modification can be put back on another content, as ``cp -p`` does; the time at which an inode
    was changed cannot.

    Raises:
        OSError: there is no such file.
    """
    status = Path(path).stat()
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
