"""Image files opened for reading: only regular files of bounded size, and images that lie inside other files."""

import contextlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from sat_vg.backbone_finetuning.utils.errors import DataError
from sat_vg.backbone_finetuning.utils.file_stamps import stamp_of
from sat_vg.backbone_finetuning.utils.regular_files import NotRegularFileError, open_regular
from sat_vg.backbone_finetuning.utils.unreadable import Unreadable

MAX_FILE_BYTES = 2**30
_MUTED = r"(PIL|torchvision\.io|rasterio)(\.|$)"
warnings.filterwarnings("ignore", module=_MUTED)
_MUTE_FILTER = warnings.filters[0]

T = TypeVar("T")


class PathInArchive(str):
    """The path of an image that lies inside another file; a text, as all other paths are."""

    __slots__ = ("size",)
    size: int  # of the image, in bytes

    def open(self) -> BinaryIO:
        """The image's bytes, in memory. Raises OSError, DataError or Unreadable."""
        raise NotImplementedError

    def stamp(self) -> str:
        """A text that differs once the image does. Raises OSError where it is not there."""
        raise NotImplementedError

    def rgb(self) -> NDArray[np.uint8] | None:
        """Its pixels ``[H, W, 3]``, where they lie there decoded; None: ``open`` it. Raises as that."""
        return None

    def dataset(self) -> Any | None:
        """What rasterio would make of its file, where GDAL has it open; None: ``open`` it. Raises as that."""
        return None


def stamp_of_image(path: str) -> str:
    """A text that differs once the image does. Raises OSError where it is not there."""
    return path.stamp() if isinstance(path, PathInArchive) else stamp_of(path)


def read_file(path: str | Path, use: Callable[[BinaryIO], T]) -> T:
    """What ``use`` makes of a file that has an end and is not too large.

    Raises:
        Unreadable: there is no such file, it cannot be opened, or ``use`` cannot read it.
        DataError: it lies in an archive that cannot be fetched.
    """
    mute_warnings()
    try:
        with _open(path) as file:
            return use(file)
    except DataError:  # an archive that cannot be fetched is no matter of this image
        raise
    except FileNotFoundError:
        raise Unreadable("there is no such file", "check the path, and whether a link leads nowhere") from None
    except OSError as error:
        reason = f"the file cannot be opened ({error.strerror or error})"
        raise Unreadable(reason, "check its permissions and the disk") from None
    except ValueError as error:  # a NUL in the path
        raise Unreadable(f"the path cannot be opened ({error})", "check the path") from None
    except MemoryError:
        raise Unreadable("there is too little memory to decode it", "cut it into smaller tiles") from None


def _open(path: str | Path) -> BinaryIO:
    if isinstance(path, PathInArchive):
        _refuse_large(path.size)
        return path.open()
    with contextlib.ExitStack() as undo:
        try:
            file = undo.enter_context(open_regular(Path(path)))
        except NotRegularFileError as error:
            raise Unreadable(error.strerror or str(error), "remove it") from None
        _refuse_large(os.fstat(file.fileno()).st_size)
        undo.pop_all()
        return file


def _refuse_large(num_bytes: int) -> None:
    if num_bytes > MAX_FILE_BYTES:
        size = f"{num_bytes / 2**30:.1f} GiB, the limit is {MAX_FILE_BYTES / 2**30:g} GiB"
        raise Unreadable(f"the file is too large ({size})", "cut it into smaller tiles")


def mute_warnings() -> None:
    """Silence the warnings of the libraries that read images (see ``decoding``)."""
    # Looked at before each image, since others may change the filters later (pytest does).
    if not warnings.filters or warnings.filters[0] != _MUTE_FILTER:
        warnings.filterwarnings("ignore", module=_MUTED)
