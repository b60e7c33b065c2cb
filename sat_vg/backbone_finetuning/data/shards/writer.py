"""Shards out of images: a plan says which image goes into which tar file, then the files are written.

The plan is a function of the images, their splits and a seed, and the bytes of a tar file are a function of the plan
(no times, no users). So a killed call goes on with the first file that is missing, and ends with the same bytes.
"""

import hashlib
import json
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, TypeVar

import torch

from sat_vg.backbone_finetuning.data.reading.files import read_file
from sat_vg.backbone_finetuning.data.shards.index import ListedShard
from sat_vg.backbone_finetuning.data.shards.paths import ShardPath
from sat_vg.backbone_finetuning.data.shards.scan import LABEL, LABELS, ScannedShard, label_set_of
from sat_vg.backbone_finetuning.data.sources.splits import Split, Splits
from sat_vg.backbone_finetuning.utils.errors import DataError
from sat_vg.backbone_finetuning.utils.safe_files import atomic_write
from sat_vg.backbone_finetuning.utils.seeding import Purpose, derive_seed, torch_generator
from sat_vg.backbone_finetuning.utils.unreadable import Unreadable

_LONGEST_KEY = 80  # bytes; tar's first format holds names of 100
_TAR_BLOCK = 512
T = TypeVar("T")
_PLAN = 1  # the version of plan and bytes


class ShardLimit(NamedTuple):
    """The limits of a shard, of which the first that is reached counts; None: no limit.

    Attributes:
        images: in it.
        num_bytes: of it; a single image may be larger.
    """

    images: int | None
    num_bytes: int | None


class PlannedImage(NamedTuple):
    """An image on its way into a shard.

    Attributes:
        key: the name in the tar without its ending.
        path: where it lies now.
        ending: of its name, without a dot.
        label: the text that is written beside it.
    """

    key: str
    path: str
    ending: str
    label: str


class PlannedShard(NamedTuple):
    """A tar file to write."""

    name: str
    split: str
    label_ending: str
    images: tuple[PlannedImage, ...]


def plan_shards(splits: Splits, limit: ShardLimit, seed: int) -> list[PlannedShard]:
    """Shuffle the images of each split into shards.

    Raises:
        DataError: an image cannot be read.
    """
    planned, number = [], 0
    for place, split in enumerate(splits.parts):
        images = [_planned(split, index, number + index) for index in range(len(split))]
        number += len(split)
        # Two positions, where the orders of epochs have one: a stream of its own.
        generator = torch_generator(derive_seed(seed, Purpose.ORDER, 0, place))
        order = torch.randperm(len(images), generator=generator).tolist()
        groups = _filled((images[index] for index in order), limit)
        ending = LABELS if split.is_multi_label else LABEL
        planned += [
            PlannedShard(f"{split.name}-{count:06d}.tar", split.name, ending, tuple(group))
            for count, group in enumerate(groups)
        ]
    return planned


def hash_of_plan(planned: Iterable[PlannedShard], splits: Splits) -> str:
    """A hash of all that the shards are made of: names, places, labels, sizes and times of change of images.

    Raises:
        DataError: an image cannot be read.
    """
    digest = hashlib.sha256(repr((_PLAN, splits.class_names, splits.train.label_sets)).encode("utf-8", "replace"))
    for shard in planned:
        digest.update(f"\n{shard.name}".encode())
        for image in shard.images:
            digest.update(f"\n{image!r} {_explained(image.path, _stamp)}".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def write_shard(folder: Path, shard: PlannedShard, webdataset: ModuleType, tell: Callable[[], object]) -> None:
    """Write a tar file, which appears under its name once it is whole; ``tell`` is called after each image.

    Raises:
        DataError: an image cannot be read.
        OSError: the disk is full.
    """
    with atomic_write(folder / shard.name) as file:
        writer = webdataset.TarWriter(file, user="", group="", mode=0o644, encoder=False, mtime=0)
        for image in shard.images:
            content = _explained(image.path, _bytes_of)
            writer.write({"__key__": image.key, image.ending: content, shard.label_ending: image.label.encode()})
            tell()
        writer.close()


def listed(shard: PlannedShard, scanned: ScannedShard, label_sets: tuple[tuple[int, ...], ...] | None) -> ListedShard:
    """The entry of a written shard in the index.

    Raises:
        DataError: the tar file holds something else than was planned.
    """
    planned = sorted((f"{image.key}.{image.ending}", image.label) for image in shard.images)
    found = sorted(zip((sample.name for sample in scanned.samples), scanned.labels, strict=True))
    if found != planned:
        raise DataError(f"the shard {shard.name!r} holds other images than were to be written; remove it")
    places = {sets: label for label, sets in enumerate(label_sets or ())}
    return scanned.listed(
        shard.name, shard.split, int if label_sets is None else lambda text: places[label_set_of(text) or ()]
    )


def _planned(split: Split, index: int, number: int) -> PlannedImage:
    path, label = split.paths[index], split.labels[index]
    text = str(label) if split.label_sets is None else json.dumps(split.label_sets[label])
    return PlannedImage(_key(number, split.name_of(label), path), path, Path(path).suffix[1:].lower(), text)


def _key(number: int, class_name: str, path: str) -> str:
    """A name that no other image has, without dots, with the names of class and file in it."""
    words = unicodedata.normalize("NFC", f"{class_name}_{Path(path).stem}")
    clean = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in words)
    return f"{number:08d}_{clean}".encode()[:_LONGEST_KEY].decode("utf-8", "ignore")


def _filled(images: Iterable[PlannedImage], limit: ShardLimit) -> list[list[PlannedImage]]:
    groups: list[list[PlannedImage]] = []
    taken = 0
    for image in images:
        size = _explained(image.path, _size)
        size = 3 * _TAR_BLOCK + -(-size // _TAR_BLOCK) * _TAR_BLOCK  # its header, and label with header
        is_full = not groups or len(groups[-1]) == limit.images
        if is_full or (limit.num_bytes is not None and taken + size > limit.num_bytes):
            groups.append([])
            taken = 0
        groups[-1].append(image)
        taken += size
    return groups


def _size(path: str) -> int:
    return path.size if isinstance(path, ShardPath) else Path(path).stat().st_size


def _stamp(path: str) -> str:
    if isinstance(path, ShardPath):
        return path.stamp()
    status = Path(path).stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def _bytes_of(path: str) -> bytes:
    return read_file(path, lambda file: file.read())


def _explained(path: str, read: Callable[[str], T]) -> T:
    """The result of ``read`` for an image.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return read(path)
    except Unreadable as problem:
        raise DataError(f"cannot read the image {path!r}: {problem.reason}; {problem.remedy}") from None
    except OSError as error:
        raise DataError(f"cannot read the image {path!r} ({error.strerror}); check the path") from error
