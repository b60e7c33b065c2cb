"""Every image decoded once before training, so that a bad file shows at the start and not in epoch 7."""

import hashlib
import os
import zipfile
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import PIL
import torchvision
from tqdm import tqdm

from sat_vg.backbone_finetuning.data.decoding import why_unreadable
from sat_vg.backbone_finetuning.data.sources import Splits
from sat_vg.backbone_finetuning.utils.errors import DataError
from sat_vg.backbone_finetuning.utils.safe_files import atomic_write

_BATCH = 64  # images per task: a task costs some 50 microseconds of bookkeeping, a small JPEG 100
_LISTED = 10
# What other versions could read is no promise for these.
_RECORD_FORMAT = f"sat_vg readable images 1; pillow {PIL.__version__}; torchvision {torchvision.__version__}"


@dataclass(frozen=True)
class BadImage:
    """An image that cannot be decoded.

    Attributes:
        path: the file, as it was given.
        reason: what is wrong with it, without the path.
    """

    path: str
    reason: str


@dataclass(frozen=True)
class _Checked:
    key: int | None  # what the record holds of an image that decodes
    bad: BadImage | None


def find_unreadable(
    paths: Sequence[str],
    *,
    record: Path | None = None,
    threads: int | None = None,
    show_progress: bool = True,
) -> list[BadImage]:
    """Decode every image and report those that cannot be.

    Args:
        paths: image files.
        record: file that remembers which images decoded well, by path, size and time of change, so that a
            later check passes over them. It is a cache: if it is damaged, of another version or cannot be
            written, the images are decoded. None remembers nothing.
        threads: images decoded at a time; by default one per available core.
        show_progress: show a progress bar where stderr is a terminal.

    Returns:
        The bad images in the order of ``paths``.
    """
    known = _read_record(record) if record is not None else set()
    before = len(known)
    bad: list[BadImage] = []
    bar = tqdm(total=len(paths), desc="checking images", unit="image", disable=None if show_progress else True)
    try:
        with bar:
            for results in _run_in_order(paths, known, threads or _available_cores()):
                known.update(result.key for result in results if result.key is not None)
                bad += [result.bad for result in results if result.bad is not None]
                bar.update(len(results))
    finally:  # what was checked before Ctrl-C need not be checked again
        if record is not None and len(known) > before:
            _write_record(record, known)
    return bad


def require_readable(
    splits: Splits,
    policy: Literal["error", "skip"],
    *,
    record: Path | None = None,
    threads: int | None = None,
    show_progress: bool = True,
) -> tuple[Splits, list[BadImage]]:
    """Check all images of the splits and deal with the bad ones.

    Args:
        splits: the images.
        policy: ``"error"`` raises if any image is bad; ``"skip"`` leaves the bad ones out.
        record: see ``find_unreadable``.
        threads: see ``find_unreadable``.
        show_progress: see ``find_unreadable``.

    Returns:
        The splits without bad images, and the bad images (empty unless ``policy`` is ``"skip"``).

    Raises:
        DataError: an image is bad and ``policy`` is ``"error"``, or leaving the bad ones out would empty val
            or a class of train.
    """
    parts = [split for split in (splits.train, splits.val, splits.test) if split is not None]
    paths = [path for split in parts for path in split.paths]
    bad = find_unreadable(paths, record=record, threads=threads, show_progress=show_progress)
    if not bad:
        return splits, []
    if policy == "error":
        raise DataError(
            f"{len(bad)} of {len(paths)} images cannot be read:\n{_listing(bad)}\n"
            "Mend or remove them, or leave them out with --on_bad_image skip"
        )
    kept = splits.without({image.path for image in bad})
    counts = kept.train.class_counts()
    emptied = [name for name, count in zip(kept.class_names, counts, strict=True) if not count]
    if emptied or not len(kept.val):
        what = "val" if not emptied else f"train's classes {', '.join(map(repr, emptied[:_LISTED]))}"
        raise DataError(
            f"leaving out the {len(bad)} images that cannot be read would leave nothing of {what}:\n"
            f"{_listing(bad)}\nMend these images or add others"
        )
    return kept, bad


def _listing(bad: Sequence[BadImage]) -> str:
    lines = [f"  {image.path!r}: {image.reason}" for image in bad[:_LISTED]]
    return "\n".join(lines + ([f"  and {len(bad) - _LISTED} more"] if len(bad) > _LISTED else []))


def _available_cores() -> int:
    # A job scheduler often grants fewer cores than the machine has.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(32, cores or 1))


def _run_in_order(paths: Iterable[str], known: set[int], threads: int) -> Iterator[list[_Checked]]:
    """Check batches of images in threads; results come in order and few batches are held at a time."""
    remaining = iter(paths)
    waiting: deque[Future[list[_Checked]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="check-images") as pool:
        while True:
            while len(waiting) < 2 * threads and (batch := list(islice(remaining, _BATCH))):
                waiting.append(pool.submit(_check_batch, batch, known))
            if not waiting:
                return
            yield waiting.popleft().result()


def _check_batch(batch: Sequence[str], known: set[int]) -> list[_Checked]:
    return [_check(path, known) for path in batch]


def _check(path: str, known: set[int]) -> _Checked:
    # Taken before decoding: a file that changes meanwhile is then decoded again next time.
    key = _key(path)
    if key is not None and key in known:
        return _Checked(key, None)
    reason = why_unreadable(path)
    return _Checked(key, None) if reason is None else _Checked(None, BadImage(path, reason))


def _key(path: str) -> int | None:
    """64 bits of a hash of path, size and time of change; None if the file cannot be looked at.

    A million images take 8 MB as such; that a bad image passes for a known one has a chance of 1 in 10**13.
    """
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return None
    text = b"\0".join(
        (os.fsencode(Path(path).absolute()), str(status.st_size).encode(), str(status.st_mtime_ns).encode())
    )
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def _read_record(record: Path) -> set[int]:
    """Keys of the images that are known to decode; none if the record is missing, damaged or foreign."""
    try:
        with np.load(record, allow_pickle=False) as content:
            if str(content["format"]) != _RECORD_FORMAT or content["keys"].dtype != np.uint64:
                return set()
            return set(content["keys"].ravel().tolist())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError):
        return set()
    except (zipfile.BadZipFile, zlib.error, NotImplementedError):
        return set()


def _write_record(record: Path, known: set[int]) -> None:
    keys = np.fromiter(known, dtype=np.uint64, count=len(known))
    keys.sort()
    try:
        with atomic_write(record) as file:
            np.savez(file, format=np.array(_RECORD_FORMAT), keys=keys)
    except OSError:
        return  # a read-only or full disk costs the next check time, nothing more
