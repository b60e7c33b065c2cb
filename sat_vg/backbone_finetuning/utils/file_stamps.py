"""Stamps of files that show a change without reading the content, and hashes of the content."""

import hashlib
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


def sha256_of(path: str | os.PathLike[str]) -> "hashlib._Hash":
    """SHA-256 of a file's content, which can go on. Raises OSError where it cannot be read."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest
