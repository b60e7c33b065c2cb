"""A copy of a named data set on this machine: found, downloaded where that is possible, and unpacked where need be.

Downloads and unpacked files go into a temporary folder that is renamed once it is complete, so a killed process
leaves nothing that is taken for a copy. Of two processes one waits for the other.
"""

import hashlib
import importlib.util
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from pickle import UnpicklingError
from tarfile import TarError
from typing import Any
from urllib.parse import quote, unquote
from zipfile import BadZipFile
from zlib import error as ZlibError

import torchvision
from tqdm import tqdm

from sat_vg.backbone_finetuning.data.sources.torchvision_datasets import NamedDataset
from sat_vg.backbone_finetuning.utils.errors import DataError
from sat_vg.backbone_finetuning.utils.file_locks import alone_with
from sat_vg.backbone_finetuning.utils.safe_files import folder_aside, remove_unfinished

# Raised by torchvision's classes where files are missing, damaged or out of reach.
_TORCHVISION_ERRORS = (
    OSError, RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AssertionError, AttributeError,
    EOFError, HTTPException, UnpicklingError, TarError, BadZipFile, ZlibError,
)  # fmt: skip
_PATIENCE_S = 60  # for a server that does not answer


def require_copy(dataset: NamedDataset, root: Path, tell: Callable[[str], None]) -> None:
    """Make sure that a folder holds a complete copy of a data set, by a download if necessary.

    Args:
        dataset: which.
        root: the folder, which is made for a download.
        tell: called with a line for the user before a download.

    Raises:
        DataError: there is none, and it cannot be downloaded; the message says what to bring.
    """
    if dataset.needs_scipy and importlib.util.find_spec("scipy") is None:
        raise DataError(f"{dataset.title} comes in MATLAB's files, which scipy reads: pip install scipy")
    if _is_whole(dataset, root):
        return
    missing = ", ".join(name for name in dataset.needs if not (root / name).exists())
    lacking = f"{str(root)!r} holds no whole copy of {dataset.title} (not there: {missing})"
    archives = [root / name for name in dataset.archives if (root / name).is_file()]
    if not dataset.can_download and not archives:
        raise DataError(f"{lacking}, which cannot be downloaded by a program.\n{_by_hand(dataset, root)}")
    tell(f"{lacking}; {'unpacking the archives' if archives else 'downloading it'}")
    try:
        _fetch(dataset, root, archives)
    except DataError:
        raise
    except _TORCHVISION_ERRORS as error:
        what = "the archives in it cannot be unpacked" if archives else "downloading it failed"
        raise DataError(f"{lacking}, and {what} ({_reason(error)}).\n{_by_hand(dataset, root)}") from error


def list_files(dataset: NamedDataset, root: Path) -> dict[str, list[tuple[str, str]]]:
    """Path and class of each image of a data set of image files by part, as torchvision lists them.

    Args:
        dataset: which.
        root: folder of a whole copy.

    Raises:
        DataError: the copy is damaged.
    """
    assert dataset.files is not None
    with _explained(dataset, root):
        return {part: list(dataset.files(_build(dataset, root, each))) for part, each in dataset.parts.items()}


def unpacked(
    name: str, dataset: NamedDataset, root: Path, cache: Path, tell: Callable[[str], None]
) -> dict[str, list[tuple[str, str]]]:
    """Path and class of each image of a packed data set by part, as PNG files in a cache folder.

    Args:
        name: of the data set.
        dataset: the same.
        root: folder of a whole copy.
        cache: folder of what is unpacked; made where it is missing.
        tell: called with a line for the user before it is unpacked.

    Raises:
        DataError: the copy is damaged, or the cache folder cannot be written to.
    """
    folder = cache / f"{name}-{_key_of(dataset, root)}"
    if not folder.is_dir():
        try:
            with _alone(cache, name):
                if not folder.is_dir():
                    tell(f"unpacking {dataset.title} into {str(folder)!r}, once")
                    remove_unfinished(cache, [f"{name}-*"])
                    _unpack(dataset, root, folder)
        except OSError as error:
            raise DataError(
                f"{dataset.title} cannot be unpacked into {str(cache)!r}: {error.strerror or error}. Make room "
                "there, or set SAT_VG_CACHE to another folder"
            ) from error
    return {part: list(_unpacked_images(folder / part)) for part in dataset.parts}


def _is_whole(dataset: NamedDataset, root: Path) -> bool:
    return all((root / name).exists() for name in dataset.needs)


def _by_hand(dataset: NamedDataset, root: Path) -> str:
    return (
        f"By hand: bring {dataset.by_hand}.\nAll of it belongs in {str(root)!r}, or in another folder that you name "
        "with --dataset_path DIR"
    )


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


@contextmanager
def _explained(dataset: NamedDataset, root: Path) -> Iterator[None]:
    """Say of a copy that torchvision cannot read where it lies and how to bring another."""
    try:
        yield
    except DataError:
        raise
    except _TORCHVISION_ERRORS as error:
        raise DataError(
            f"the copy of {dataset.title} in {str(root)!r} cannot be read ({_reason(error)}). Remove "
            f"{', '.join(dataset.needs)} there and bring it anew.\n{_by_hand(dataset, root)}"
        ) from error


def _build(dataset: NamedDataset, root: Path, arguments: Mapping[str, Any], **more: Any) -> Any:
    """The object of torchvision's class for one part of a data set."""
    kind = getattr(torchvision.datasets, dataset.kind)
    try:
        return kind(str(root), **arguments, **more)
    except ImportError as error:
        raise DataError(
            f"reading {dataset.title} needs {error.name}, which is not installed: pip install {error.name}"
        ) from error


def _fetch(dataset: NamedDataset, root: Path, archives: list[Path]) -> None:
    """Download, or unpack archives, beside what is there, and move in what was missing."""
    with _alone(root, dataset.kind):
        if _is_whole(dataset, root):  # another process was first
            return
        with folder_aside(root / dataset.kind) as temporary:
            for archive in archives:
                (temporary / archive.name).symlink_to(archive.absolute())
            options = {"download": True} if dataset.can_download else {}
            with _impatient():
                for arguments in dataset.parts.values():
                    _build(dataset, temporary, arguments, **options)
            _move_into(temporary, root)


def _move_into(source: Path, target: Path) -> None:
    """Move what the target lacks; links to archives stay behind."""
    for entry in sorted(source.iterdir()):
        place = target / entry.name
        if entry.is_symlink():
            continue
        if entry.is_dir() and place.is_dir():
            _move_into(entry, place)
        elif not place.exists():
            entry.rename(place)


def _unpack(dataset: NamedDataset, root: Path, folder: Path) -> None:
    """Write ``folder/PART/CLASS/NUMBER.png``, where the number is the image's place in its part."""
    with folder_aside(folder) as temporary:
        for part, arguments in dataset.parts.items():
            with _explained(dataset, root):
                images = _build(dataset, root, arguments)
                places = [temporary / part / _folder_of(name) for name in dataset.class_names(images)]
            for place in places:
                place.mkdir(parents=True)
            for index in tqdm(range(len(images)), f"unpacking {dataset.title}, {part}", leave=False, disable=None):
                with _explained(dataset, root):
                    image, label = images[index]
                    place = places[label]
                image.save(place / f"{index:06d}.png", compress_level=1)  # more saves little on small images
        temporary.rename(folder)


def _folder_of(class_name: str) -> str:
    """A folder's name that ``unquote`` makes the class's of; no slash is left in it, and no ``..``."""
    return quote(class_name, safe=" ").replace(".", "%2E")


def _unpacked_images(folder: Path) -> Iterator[tuple[str, str]]:
    for place in folder.iterdir():
        name = unquote(place.name)
        with os.scandir(place) as entries:
            yield from ((entry.path, name) for entry in entries)


def _key_of(dataset: NamedDataset, root: Path) -> str:
    """A hash of which files a copy has, by name, size and time of change."""
    seen = []
    for name in dataset.needs:
        place = root / name
        files = [place] if place.is_file() else [each for each in place.rglob("*") if each.is_file()]
        for file in files:
            status = file.stat()
            seen.append((file.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns))
    return hashlib.sha256(repr(sorted(seen)).encode("utf-8", "surrogateescape")).hexdigest()[:16]


@contextmanager
def _alone(folder: Path, name: str) -> Iterator[None]:
    """Let one process at a time do the same in a folder, if its file system has locks."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with alone_with(folder / f".{name}.lock"):
        yield


@contextmanager
def _impatient() -> Iterator[None]:
    """Let no server keep a download waiting for ever; torchvision sets no limit."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_PATIENCE_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
