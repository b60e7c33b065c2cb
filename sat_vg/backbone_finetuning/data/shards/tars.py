"""Tar files of WebDataset: read through, planned out of images, and written. Nothing is unpacked.

Files with the same name up to its first dot form a sample: ``00000041_sea_7.jpg`` and ``00000041_sea_7.cls``.

A plan says which image goes into which tar file. It is a function of the images, their splits and a seed, and the
bytes of a tar file are a function of the plan (no times, no users). So a killed call goes on with the first file that
is missing, and ends with the same bytes.
"""

import hashlib
import json
import tarfile
import unicodedata
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import BinaryIO, NamedTuple, TypeVar

import torch

from sat_vg.backbone_finetuning.data.reading.files import PathInArchive, read_file
from sat_vg.backbone_finetuning.data.shards.cache import ShardPath
from sat_vg.backbone_finetuning.data.shards.index import Sample, Shard, is_sample_name
from sat_vg.backbone_finetuning.data.sources.class_folders import IMAGE_ENDINGS
from sat_vg.backbone_finetuning.data.sources.splits import Split, Splits
from sat_vg.backbone_finetuning.data.windows.opened import open_scene
from sat_vg.backbone_finetuning.data.windows.paths import WindowPath
from sat_vg.backbone_finetuning.utils.errors import DataError
from sat_vg.backbone_finetuning.utils.file_stamps import sha256_of
from sat_vg.backbone_finetuning.utils.json_reading import UnsoundJSONError, parse_json
from sat_vg.backbone_finetuning.utils.regular_files import open_regular
from sat_vg.backbone_finetuning.utils.safe_files import atomic_write
from sat_vg.backbone_finetuning.utils.seeding import Purpose, derive_seed, torch_generator
from sat_vg.backbone_finetuning.utils.unreadable import Unreadable

_LABEL, _LABELS = "cls", "json"  # endings: one class as a number or name, or several as a list of numbers
_LONGEST_LABEL = 2**12
_LONGEST_KEY = 80  # bytes; tar's first format holds names of 100
_TAR_BLOCK = 512
_PLAN = 1  # the version of plan and bytes
T = TypeVar("T")


class TarContent(NamedTuple):
    """What a tar file holds: its size, the SHA-256 of its bytes, and its images with the texts of their labels.

    A label is the text of an image's ``.cls``; without one of its ``.json``, if that is a list of numbers.
    """

    num_bytes: int
    sha256: str
    samples: tuple[Sample, ...]
    labels: tuple[str, ...]

    def listed(self, name: str, split: str, label_of: Callable[[str], int]) -> tuple[Shard, tuple[Sample, ...]]:
        """Its entry in an index."""
        pairs = zip(self.samples, self.labels, strict=True)
        samples = tuple(sample._replace(label=label_of(text)) for sample, text in pairs)
        return Shard(name, split, self.num_bytes, self.sha256), samples


def scan_tar(path: Path) -> TarContent:
    """Read a tar file from one end to the other. Raises DataError where it is damaged, or has odd samples."""
    try:
        with open_regular(path) as file:
            images, labels = _members_of(path, file)
        num_bytes, sha256 = path.stat().st_size, sha256_of(path).hexdigest()
    except OSError as error:
        raise DataError(f"the shard {str(path)!r} cannot be read ({error.strerror or error})") from error
    except tarfile.TarError as error:
        raise DataError(
            f"{str(path)!r} is no tar file without compression, or it is cut short or damaged ({error}); copy or "
            "unpack it again"
        ) from error
    if not images and not labels:
        raise DataError(f"{str(path)!r} holds no images (endings looked for: {' '.join(IMAGE_ENDINGS)}); remove it")
    texts = []
    for key, image in images.items():
        own = labels.get(key, {})
        several = own.get(_LABELS, "")
        texts.append(own.get(_LABEL, "") or (several if label_set_of(several) is not None else ""))
        if not texts[-1]:
            raise DataError(
                f"{str(path)!r} has no label for {image.name!r}; it needs a {key}.{_LABEL} with the number or name "
                "of its class"
            )
    alone = [key for key in labels if key not in images]
    if alone:
        raise DataError(
            f"{str(path)!r} has a label and no image under {alone[0]!r}; add the image, or remove the label"
        )
    return TarContent(num_bytes, sha256, tuple(images.values()), tuple(texts))


def _members_of(path: Path, file: BinaryIO) -> tuple[dict[str, Sample], dict[str, dict[str, str]]]:
    """The image of each sample, and its labels by ending."""
    images: dict[str, Sample] = {}
    labels: dict[str, dict[str, str]] = {}
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            if not member.isreg() or member.issparse():
                continue
            name = str(PurePosixPath(member.name))
            key, _, ending = PurePosixPath(name).name.partition(".")
            key = str(PurePosixPath(name).with_name(key)) if key else name
            if f".{ending.rpartition('.')[2]}".lower() in IMAGE_ENDINGS:
                if key in images:
                    raise DataError(
                        f"{str(path)!r} has two images under {key!r}; a sample must have one, and a .{_LABEL}"
                    )
                if not is_sample_name(name):
                    raise DataError(f"{str(path)!r} has an image {name!r}, which is no name to read; rename it")
                images[key] = Sample(name, -1, member.offset_data, member.size, zlib.crc32(_bytes_at(file, member)))
            elif ending in (_LABEL, _LABELS) and member.size <= _LONGEST_LABEL:
                text = _bytes_at(file, member).decode("utf-8", "replace").strip()
                labels.setdefault(key, {})[ending] = text
    return images, labels


def _bytes_at(file: BinaryIO, member: tarfile.TarInfo) -> bytes:
    file.seek(member.offset_data)
    content = file.read(member.size)
    if len(content) < member.size:
        raise tarfile.ReadError(f"{member.name} ends early")
    return content


def label_set_of(text: str) -> tuple[int, ...] | None:
    """Several classes, or none, out of a text such as ``[0, 3]``; None where it is something else."""
    try:
        values = parse_json(text)
    except UnsoundJSONError:
        return None
    return tuple(values) if isinstance(values, list) and all(type(value) is int for value in values) else None


class PlannedImage(NamedTuple):
    """An image on its way into a shard."""

    key: str  # its name in the tar without its ending
    path: str  # where it lies now
    ending: str  # of its name, without a dot
    label: str  # the text that is written beside it


class PlannedShard(NamedTuple):
    """A tar file to write."""

    name: str
    split: str
    label_ending: str
    images: tuple[PlannedImage, ...]

    def write(self, folder: Path, webdataset: ModuleType, tell: Callable[[], object]) -> None:
        """Write the file, which appears under its name once it is whole; ``tell`` is called after each image."""
        with atomic_write(folder / self.name) as file:
            writer = webdataset.TarWriter(file, user="", group="", mode=0o644, encoder=False, mtime=0)
            for image in self.images:
                content = _explained(image.path, _bytes_of)
                writer.write({"__key__": image.key, image.ending: content, self.label_ending: image.label.encode()})
                tell()
            writer.close()

    def read_back(
        self, folder: Path, label_sets: tuple[tuple[int, ...], ...] | None
    ) -> tuple[Shard, tuple[Sample, ...]]:
        """The entry of the written file in the index. Raises DataError where it does not hold what was planned."""
        found = scan_tar(folder / self.name)
        held = zip((sample.name for sample in found.samples), found.labels, strict=True)
        if sorted(held) != sorted((f"{image.key}.{image.ending}", image.label) for image in self.images):
            raise DataError(f"the shard {self.name!r} holds other images than were to be written; remove it")
        places = {sets: label for label, sets in enumerate(label_sets or ())}
        return found.listed(
            self.name, self.split, int if label_sets is None else lambda text: places[label_set_of(text) or ()]
        )


def plan_shards(splits: Splits, most_images: int | None, most_bytes: int | None, seed: int) -> list[PlannedShard]:
    """Shuffle the images of each split into shards of so many images or bytes at the most; None: no limit."""
    planned, number = [], 0
    for place, split in enumerate(splits.parts):
        images = [_planned(split, index, number + index) for index in range(len(split))]
        number += len(split)
        # Two positions, where the orders of epochs have one: a stream of its own.
        generator = torch_generator(derive_seed(seed, Purpose.ORDER, 0, place))
        groups: list[list[PlannedImage]] = []
        taken = 0
        for index in torch.randperm(len(images), generator=generator).tolist():
            size = _explained(images[index].path, _size)
            size = 3 * _TAR_BLOCK + -(-size // _TAR_BLOCK) * _TAR_BLOCK  # its header, and label with header
            is_full = not groups or len(groups[-1]) == most_images
            if is_full or (most_bytes is not None and taken + size > most_bytes):
                groups.append([])
                taken = 0
            groups[-1].append(images[index])
            taken += size
        ending = _LABELS if split.is_multi_label else _LABEL
        planned += [
            PlannedShard(f"{split.name}-{count:06d}.tar", split.name, ending, tuple(group))
            for count, group in enumerate(groups)
        ]
    return planned


def hash_of_plan(planned: Iterable[PlannedShard], splits: Splits) -> str:
    """A hash of all that the shards are made of: names, places, labels, sizes and times of change of images."""
    digest = hashlib.sha256(repr((_PLAN, splits.class_names, splits.train.label_sets)).encode("utf-8", "replace"))
    for shard in planned:
        digest.update(f"\n{shard.name}".encode())
        for image in shard.images:
            digest.update(f"\n{image!r} {_explained(image.path, _stamp)}".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _planned(split: Split, index: int, number: int) -> PlannedImage:
    path, label = split.paths[index], split.labels[index]
    text = str(label) if split.label_sets is None else json.dumps(split.label_sets[label])
    # A name that no other image has, without dots, with the names of class and file in it.
    words = unicodedata.normalize("NFC", f"{split.name_of(label)}_{Path(path).stem}")
    clean = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in words)
    key = f"{number:08d}_{clean}".encode()[:_LONGEST_KEY].decode("utf-8", "ignore")
    ending = Path(path).suffix[1:].lower()
    if isinstance(path, WindowPath):  # as ``encode_window`` writes it
        ending = "bmp" if open_scene(path.scene).is_picture else "tif"
    return PlannedImage(key, path, ending, text)


def _bytes_of(path: str) -> bytes:
    return read_file(path, lambda file: file.read())


def _size(path: str) -> int:
    if isinstance(path, ShardPath):
        return path.size
    return len(_bytes_of(path)) if isinstance(path, WindowPath) else Path(path).stat().st_size


def _stamp(path: str) -> str:
    if isinstance(path, PathInArchive):
        return path.stamp()
    status = Path(path).stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def _explained(path: str, read: Callable[[str], T]) -> T:
    """The result of ``read`` for an image. Raises DataError where it cannot be read."""
    try:
        return read(path)
    except Unreadable as problem:
        raise DataError(f"cannot read the image {path!r}: {problem.reason}; {problem.remedy}") from None
    except OSError as error:
        raise DataError(f"cannot read the image {path!r} ({error.strerror}); check the path") from error
