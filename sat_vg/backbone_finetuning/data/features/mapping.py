"""Features on the disk while they are computed and used: numbers, row after row, without a header."""

import os
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from sat_vg.backbone_finetuning.utils.regular_files import open_regular


def map_numbers(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], writable: bool = False) -> np.ndarray:
    """Map a file into memory, which may be larger than the memory.

    Args:
        path: of the file; it may be unlinked later.
        dtype: of its numbers.
        shape: of the array that they form.
        writable: whether changes of the array go into the file; else they stay in memory.

    Raises:
        OSError: it is not there, or no regular file.
        ValueError: it has another length.
    """
    with open_regular(path, os.O_RDWR if writable else os.O_RDONLY) as file:
        size = os.fstat(file.fileno()).st_size
        if size != prod(shape) * dtype.itemsize:
            raise ValueError(f"{str(path)!r} has {size} bytes")
        # "c" (copy on write): torch wants memory that could be written to.
        return np.memmap(file, dtype, mode="r+" if writable else "c", shape=shape)
