"""``shards.json``: the images in each tar file, with place, size, checksum and label.

The tar files are WebDataset's, and can be streamed without this index. With it, every image of a data set is known
before one is opened, and each can be read on its own.

An index may come from a stranger, so it names neither folders nor commands: shards are plain file names, which can
stand in a command without quotes.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from sat_vg.backbone_finetuning.data.shards.paths import Shard, ShardStore
from sat_vg.backbone_finetuning.data.sources.class_names import same_form
from sat_vg.backbone_finetuning.utils.errors import DataError
from sat_vg.backbone_finetuning.utils.json_reading import UnsoundJSONError, read_json
from sat_vg.backbone_finetuning.utils.safe_files import write_text

INDEX = "shards.json"
PARTS = ("train", "val", "test")
SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.tar")
_FORMAT, _VERSION = "sat_vg shards", 1
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST_BYTES = 2**32  # of some 4 * 10**7 images
_SHOWN = 60  # characters of a value in a message


class Sample(NamedTuple):
    """An image in a shard.

    Attributes:
        name: of the file in the tar.
        label: place in ``class_names``, or in ``label_sets`` where there are some; -1: not known yet.
        offset: of its first byte in the tar.
        size: in bytes.
        crc: CRC-32 of its bytes.
    """

    name: str
    label: int
    offset: int
    size: int
    crc: int


@dataclass(frozen=True)
class ListedShard:
    """A tar file.

    Attributes:
        name: of the file.
        split: train, val or test.
        num_bytes: of the file.
        sha256: of its bytes, in hexadecimal digits.
        samples: its images, in their order.
    """

    name: str
    split: str
    num_bytes: int
    sha256: str
    samples: tuple[Sample, ...]

    def located(self, store: ShardStore) -> Shard:
        """The shard, to be read from a store."""
        return Shard(self.name, self.num_bytes, self.sha256, store)


@dataclass(frozen=True)
class ShardIndex:
    """What ``shards.json`` holds.

    Attributes:
        class_names: the classes.
        label_sets: where an image can have several classes or none: each combination, as places in ``class_names``.
        plan: hash of the images and settings that the shards were written from; empty where others wrote them.
        shards: the tar files.
    """

    class_names: tuple[str, ...]
    label_sets: tuple[tuple[int, ...], ...] | None
    plan: str
    shards: tuple[ListedShard, ...]

    @property
    def num_labels(self) -> int:
        """Labels are below this number."""
        return len(self.class_names if self.label_sets is None else self.label_sets)

    def of_part(self, part: str) -> list[ListedShard]:
        """The shards of a split."""
        return [shard for shard in self.shards if shard.split == part]

    def count(self, part: str) -> int:
        """Images of a split."""
        return sum(len(shard.samples) for shard in self.of_part(part))


class _UnsoundError(Exception):
    """Says in which place an index is unsound."""


def write_index(path: Path, index: ShardIndex) -> None:
    """Write an index, atomically, one line for each shard.

    Raises:
        OSError: it cannot be written.
    """
    head = {"format": _FORMAT, "version": _VERSION, "class_names": index.class_names, "label_sets": index.label_sets}
    lines = ",\n".join(
        json.dumps(
            {
                "name": one.name,
                "split": one.split,
                "bytes": one.num_bytes,
                "sha256": one.sha256,
                "samples": one.samples,
            }
        )
        for one in index.shards
    )
    begin = json.dumps({**head, "plan": index.plan}, indent=1).removesuffix("\n}")
    write_text(path, f'{begin},\n "shards": [\n{lines}\n ]\n}}\n')


def read_index(path: Path) -> ShardIndex:
    """Read and check an index.

    Raises:
        DataError: it is missing, damaged, of another version, or says what cannot be.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise DataError(f"{str(path)!r} is larger than {_MOST_BYTES // 2**30} GiB; make fewer or larger shards")
        content = read_json(path, _MOST_BYTES)
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read ({error.strerror or error}); check the path") from None
    except UnsoundJSONError as error:
        raise DataError(f"{str(path)!r} is damaged: {error}. Copy it again, or {_ANEW}") from None
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise DataError(f"{str(path)!r} is no index of shards that sat-vg shard has written; {_ANEW}")
    if content.get("version") != _VERSION:
        raise DataError(
            f"{str(path)!r} is of version {_shown(content.get('version'))}, and this version of sat_vg reads version "
            f"{_VERSION}; {_ANEW}, or use the sat_vg that wrote it"
        )
    try:
        return _index_of(content)
    except _UnsoundError as problem:
        raise DataError(f"{str(path)!r} is damaged or made up: {problem}. Copy it again, or {_ANEW}") from None


_ANEW = "make it anew from the tar files with sat-vg shard --index DIR"


def is_sample_name(name: str) -> bool:
    """Whether a name in a tar can stand in a path: relative, without ``..``, line breaks and control characters."""
    parts = PurePosixPath(name).parts
    return bool(parts) and name.isprintable() and not name.startswith("/") and ".." not in parts


def _index_of(content: dict[str, Any]) -> ShardIndex:
    class_names = tuple(map(same_form, _list_of(content, "class_names", str)))
    if len(class_names) < 2 or len(set(class_names)) < len(class_names) or not all(class_names):
        raise _UnsoundError("class_names are fewer than two, or one of them is there twice or empty")
    sets = content.get("label_sets")
    if sets is not None:
        sets = tuple(_label_set(one, len(class_names)) for one in _list_of(content, "label_sets", list))
    num_labels = len(class_names) if sets is None else len(sets)
    shards = tuple(_shard_of(entry, num_labels) for entry in _list_of(content, "shards", dict))
    names = [shard.name for shard in shards]
    twice = [name for place, name in enumerate(sorted(names)) if place and sorted(names)[place - 1] == name]
    if twice:
        raise _UnsoundError(f"the shard {twice[0]!r} is there twice")
    return ShardIndex(class_names, sets, str(content.get("plan", "")), shards)


def _label_set(given: Sequence[Any], num_classes: int) -> tuple[int, ...]:
    if not all(_is_whole(place) and place < num_classes for place in given) or sorted(set(given)) != list(given):
        raise _UnsoundError(f"label_sets holds {_shown(given)}, which are no places of classes")
    return tuple(given)


def _shard_of(entry: dict[str, Any], num_labels: int) -> ListedShard:
    name, split, size, digest = (entry.get(key) for key in ("name", "split", "bytes", "sha256"))
    if not isinstance(name, str) or not SHARD_NAME.fullmatch(name):
        raise _UnsoundError(
            f"the shard name {_shown(name)} is no plain name of a .tar file (letters, digits, '_', '-' and '.')"
        )
    if split not in PARTS:
        raise _UnsoundError(
            f"the shard {name!r} is of the split {_shown(split)}, which is none of {', '.join(PARTS)}"
        )
    if not _is_whole(size) or not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise _UnsoundError(f"the shard {name!r} has no number of bytes or no SHA-256")
    assert isinstance(size, int)
    samples = tuple(_samples_of(_list_of(entry, "samples", list), name, size, num_labels))
    if len({sample.name for sample in samples}) < len(samples):
        raise _UnsoundError(f"the shard {name!r} has two images of the same name")
    return ListedShard(name, split, size, digest, samples)


def _samples_of(rows: list[list[Any]], shard: str, num_bytes: int, num_labels: int) -> Iterator[Sample]:
    for row in rows:
        is_sound = (
            len(row) == 5 and isinstance(row[0], str) and is_sample_name(row[0]) and all(map(_is_whole, row[1:]))
        )
        if not is_sound or row[1] >= num_labels or row[2] + row[3] > num_bytes:
            raise _UnsoundError(f"the shard {shard!r} has an entry {_shown(row)}, which is no image in it")
        yield Sample(*row)


def _list_of(entry: dict[str, Any], key: str, kind: type) -> list[Any]:
    values = entry.get(key)
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise _UnsoundError(f"{key} is {_shown(values)}")
    return values


def _is_whole(value: object) -> bool:
    return type(value) is int and value >= 0


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
