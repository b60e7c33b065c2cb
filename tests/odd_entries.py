"""What can lie where a file is expected, and is none, or none of this program's."""

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path


def write_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path is short
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


def write_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**33)


ODD_ENTRIES: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "socket": write_socket,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "folder": lambda path: (path / "inside").mkdir(parents=True),
    "dangling link": lambda path: path.symlink_to("/nowhere/at/all"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "empty file": lambda path: path.touch(),
    "sparse file": write_sparse,
}


def put_in_place(path: Path, kind: str) -> None:
    """Replace whatever is at ``path``."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    ODD_ENTRIES[kind](path)
