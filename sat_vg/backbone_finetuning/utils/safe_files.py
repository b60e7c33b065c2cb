"""Files that are either whole or not there: temporary file, sync, rename; and reads that cannot run code."""

import os
import pickle
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from sat_vg.backbone_finetuning.utils.errors import CheckpointError


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file that appears under ``path`` only once it is complete and on the disk.

    Whatever was at ``path`` stays until the rename; on an error the temporary file is removed.

    Raises:
        OSError: the folder cannot be written to or the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with atomic_write(path) as file:
        file.write(text.encode("utf-8"))


def save_tensors(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain data with ``torch.save``, atomically."""
    with atomic_write(path) as file:
        torch.save(content, file)


def load_tensors(path: Path) -> Any:
    """Read a file of tensors and plain data onto the CPU; nothing in it can run code.

    Raises:
        CheckpointError: the file is missing, cut short, altered, or holds more than tensors and plain data.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no file {str(path)!r}; check the path")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{str(path)!r} is no file of plain tensors, so it was not loaded ({reason}). It may hold Python "
            "objects, which could run code: convert it where you trust it, keeping only its state_dict"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{str(path)!r} cannot be read: {reason}. The file is cut short or altered; copy it again or use "
            "an earlier checkpoint"
        ) from error
