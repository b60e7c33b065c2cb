"""Files of tensors and plain data: written whole or not at all, read without running any code in them."""

import argparse
import pickle
import shutil
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from sat_vg.backbone_finetuning.utils.errors import CheckpointError, WriteError
from sat_vg.backbone_finetuning.utils.safe_files import atomic_write
from sat_vg.backbone_finetuning.utils.torch_archives import DamagedFileError, RefusedFileError, require_sound

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
    pickle.UnpicklingError,
    safetensors.SafetensorError,
    DamagedFileError,
)


def save_tensors(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain data with ``torch.save``, atomically.

    Raises:
        WriteError: the disk is full or the folder cannot be written to; the file from before is untouched.
    """
    with _explained_writing(path), atomic_write(path) as file:
        torch.save(content, file)


def save_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors in the format of safetensors, atomically.

    Raises:
        WriteError: the disk is full or the folder cannot be written to; the file from before is untouched.
    """
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with _explained_writing(path), atomic_write(path) as file:
        file.write(safetensors.torch.save(on_cpu, metadata))


@contextmanager
def _explained_writing(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch reports a failed write as a RuntimeError of its archive
        if "DataLoader worker" in str(error):  # torch raises that wherever the process happens to be
            raise
        cause = error if isinstance(error, OSError) else error.__context__ or error
        free = shutil.disk_usage(path.parent).free if path.parent.is_dir() else 0
        raise WriteError(
            f"{str(path)!r} cannot be written ({str(cause).splitlines()[0]}; {free / 2**20:.0f} MiB are free there). "
            "The files from before are untouched: make room and run the same command again"
        ) from cause


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do: with the length of a JSON object, and the object."""
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size


def safetensors_metadata(path: Path) -> dict[str, str]:
    """What a file of safetensors, which can be read, says beside its tensors."""
    with safetensors.safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def load_tensors(path: Path, with_namespace: bool = False) -> Any:
    """Read a file of tensors and plain data onto the CPU; nothing in it can run code.

    Files of ``torch.save`` are looked through first: checksums are compared, and what would need more memory than
    the file is long is refused. Safetensors are recognised by their content, not by the name.

    Args:
        path: of the file.
        with_namespace: the file may hold objects of the class ``argparse.Namespace``, as published checkpoints do.

    Raises:
        CheckpointError: the file is missing, cut short, altered, or holds more than tensors and plain data.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no file {str(path)!r}; check the path")
    try:
        if is_safetensors(path):
            return safetensors.torch.load_file(path)
        require_sound(path, with_namespace)
        allowed = torch.serialization.safe_globals([argparse.Namespace] if with_namespace else [])
        with allowed, path.open("rb") as file:  # of a path torch would believe the ending
            return torch.load(file, map_location="cpu", weights_only=True)
    except RefusedFileError as error:
        raise CheckpointError(
            f"{str(path)!r} is no file of plain tensors, so it was not loaded: {error}. Such a file could run code "
            "or exhaust the memory: if you trust it, convert it where it was made, keeping only its state_dict"
        ) from error
    except _DAMAGE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{str(path)!r} cannot be read: {reason}. The file is cut short, altered, or no checkpoint of torch; "
            "copy it again or use an earlier checkpoint"
        ) from error
