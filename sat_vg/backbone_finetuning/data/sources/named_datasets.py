"""Training on a data set that torchvision knows, by its name: train, val and test as the data set has them.

A copy on this machine is found, downloaded where that is possible, and unpacked where need be. Downloads and unpacked
files go into a temporary folder that is renamed once it is complete, so a killed process leaves nothing that is taken
for a copy. Of two processes one waits for the other.
"""

import hashlib
import importlib.util
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

from sat_vg.backbone_finetuning.data.sources.listed_splits import ListedImage, splits_of
from sat_vg.backbone_finetuning.data.sources.source import ImageQuery, Source
from sat_vg.backbone_finetuning.data.sources.splits import Splits
from sat_vg.backbone_finetuning.data.sources.torchvision_datasets import DATASETS, NamedDataset
from sat_vg.backbone_finetuning.utils.cache_folder import cache_folder
from sat_vg.backbone_finetuning.utils.errors import DataError
from sat_vg.backbone_finetuning.utils.file_locks import alone_with
from sat_vg.backbone_finetuning.utils.safe_files import folder_aside, remove_unfinished

COPIES, UNPACKED = "datasets", "unpacked"  # in the cache folder
# Raised by torchvision's classes where files are missing, damaged or out of reach.
_TORCHVISION_ERRORS = (
    OSError, RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AssertionError, AttributeError,
    EOFError, HTTPException, UnpicklingError, TarError, BadZipFile, ZlibError,
)  # fmt: skip
_PATIENCE_S = 60  # for a server that does not answer

_Listed = dict[str, list[tuple[str, str]]]  # path and class of each image, by part


class NamedDatasets(Source):
    """The source of data sets that torchvision knows by name."""

    def takes(self, query: ImageQuery) -> bool:
        """See ``Source``."""
        return query.dataset is not None

    def load_splits(self, query: ImageQuery) -> Splits:
        """Images of a data set: train, val and test as it has them, with its class names, sorted.

        The path is that of a copy in torchvision's layout; where none is given, it lies in the cache folder. What is
        missing there is downloaded.

        Raises:
            DataError: there is no whole copy and none can be downloaded, or it is damaged.
        """
        assert query.dataset is not None
        name, dataset = query.dataset, DATASETS[query.dataset]
        usual = cache_folder() / COPIES / name
        root = usual if query.path is None else query.place
        if query.path is not None and not root.is_dir():
            raise DataError(
                f"there is no folder {str(root)!r} with a copy of {dataset.title}; check --dataset_path, or leave it "
                f"out for the cache folder ({str(usual)!r})"
            )
        _require_copy(dataset, root, query.tell)
        if dataset.files is None:
            found = _unpacked(name, dataset, root, query.tell)
        else:
            with _explained(dataset, root):
                found = {part: list(dataset.files(_build(dataset, root, how))) for part, how in dataset.parts.items()}
            _require_inside(dataset, root, found)
        parts = {
            part: [ListedImage(path, (class_name,), path) for path, class_name in images]
            for part, images in found.items()
        }
        how = f", split by seed {query.seed}"
        if len(parts) > 1:
            how = f", which has no val, so val is {100 * query.val_fraction:g}% of train by seed {query.seed}"
        return splits_of(parts, dataset.title, query, how)


NAMED_DATASETS = NamedDatasets()


def _require_inside(dataset: NamedDataset, root: Path, found: _Listed) -> None:
    """Refuse a copy whose lists name files elsewhere on this machine."""
    for images in found.values():
        for path, _ in images:
            if not Path(path).is_relative_to(root) or ".." in Path(path).parts[len(root.parts) :]:
                raise DataError(
                    f"the copy of {dataset.title} in {str(root)!r} names a file outside itself, {path!r}: it is not "
                    "the data set; use another copy"
                )


def _require_copy(dataset: NamedDataset, root: Path, tell: Callable[[str], None]) -> None:
    """Make sure that a folder holds a complete copy, by a download if necessary, of which ``tell`` says so before."""
    if dataset.needs_scipy and importlib.util.find_spec("scipy") is None:
        raise DataError(f"{dataset.title} comes in MATLAB's files, which scipy reads: pip install scipy")
    missing = [name for name in dataset.needs if not (root / name).exists()]
    if not missing:
        return
    lacking = f"{str(root)!r} holds no whole copy of {dataset.title} (not there: {', '.join(missing)})"
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
    patience = socket.getdefaulttimeout()
    with _alone(root, dataset.kind):
        if all((root / name).exists() for name in dataset.needs):  # another process was first
            return
        with folder_aside(root / dataset.kind) as temporary:
            for archive in archives:
                (temporary / archive.name).symlink_to(archive.absolute())
            options = {"download": True} if dataset.can_download else {}
            socket.setdefaulttimeout(_PATIENCE_S)  # torchvision sets no limit
            try:
                for arguments in dataset.parts.values():
                    _build(dataset, temporary, arguments, **options)
            finally:
                socket.setdefaulttimeout(patience)
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


def _unpacked(name: str, dataset: NamedDataset, root: Path, tell: Callable[[str], None]) -> _Listed:
    """Path and class of each image of a packed data set, as PNG files in the cache folder."""
    cache = cache_folder() / UNPACKED
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
    return {
        part: [(str(path), unquote(place.name)) for place in (folder / part).iterdir() for path in place.iterdir()]
        for part in dataset.parts
    }


def _unpack(dataset: NamedDataset, root: Path, folder: Path) -> None:
    """Write ``folder/PART/CLASS/NUMBER.png``, where the number is the image's place in its part."""
    with folder_aside(folder) as temporary:
        for part, arguments in dataset.parts.items():
            with _explained(dataset, root):
                images = _build(dataset, root, arguments)
                # Names that ``unquote`` makes the classes' of; no slash is left in them, and no ``..``.
                names = [quote(name, safe=" ").replace(".", "%2E") for name in dataset.class_names(images)]
            places = [temporary / part / name for name in names]
            for place in places:
                place.mkdir(parents=True)
            for index in tqdm(range(len(images)), f"unpacking {dataset.title}, {part}", leave=False, disable=None):
                with _explained(dataset, root):
                    image, label = images[index]
                    place = places[label]
                image.save(place / f"{index:06d}.png", compress_level=1)  # more saves little on small images
        temporary.rename(folder)


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
