"""Files of tensors and plain data: written whole or not at all, read without running any code in them."""

import pickle
from pathlib import Path
from typing import Any

import torch

from sat_vg.backbone_finetuning.utils.errors import CheckpointError
from sat_vg.backbone_finetuning.utils.safe_files import atomic_write


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
