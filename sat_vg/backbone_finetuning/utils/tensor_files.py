"""Files of tensors and plain data: written whole or not at all, read without running any code in them."""

import pickle
import re
import shutil
import struct
from pathlib import Path
from typing import Any

import torch

from sat_vg.backbone_finetuning.utils.errors import CheckpointError, WriteError
from sat_vg.backbone_finetuning.utils.safe_files import atomic_write

# What torch's reader lets escape on files that are cut short, altered or of another kind.
_DAMAGE = (
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    struct.error,
)


def save_tensors(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain data with ``torch.save``, atomically.

    Raises:
        WriteError: the disk is full or the folder cannot be written to; the file from before is untouched.
    """
    try:
        with atomic_write(path) as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:  # torch reports a failed write as a RuntimeError of its archive
        cause = error if isinstance(error, OSError) else error.__context__ or error
        free = shutil.disk_usage(path.parent).free if path.parent.is_dir() else 0
        raise WriteError(
            f"{str(path)!r} cannot be written ({str(cause).splitlines()[0]}; {free / 2**20:.0f} MiB are free there). "
            "The files from before are untouched: make room and run the same command again"
        ) from error


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
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        found = f"it holds the Python object {named.group(1)}" if named else "it is no checkpoint of torch"
        raise CheckpointError(
            f"{str(path)!r} is no file of plain tensors, so it was not loaded: {found}. Python objects could run "
            "code: if you trust the file, convert it where it was made, keeping only its state_dict"
        ) from error
    except _DAMAGE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{str(path)!r} cannot be read: {reason}. The file is cut short or altered; copy it again or use "
            "an earlier checkpoint"
        ) from error
