"""``shards.json``: the images in each tar file, with place, size, checksum and label.

The tar files are WebDataset's, and can be streamed without this index. With it, every image of a data set is known
before one is opened, and each can be read on its own.

An index may come from a stranger, so it names neither folders nor commands: shards are plain file names, which can
stand in a command without quotes.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from sat_vg.backbone_finetuning.data.sources.class_names import same_form
from sat_vg.backbone_finetuning.utils.errors import DataError
from sat_vg.backbone_finetuning.utils.json_reading import UnsoundJSONError, read_json
from sat_vg.backbone_finetuning.utils.printable import shortened
from sat_vg.backbone_finetuning.utils.safe_files import write_text

INDEX = "shards.json"
PARTS = ("train", "val", "test")
SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.tar")
_FORMAT, _VERSION = "sat_vg shards", 1
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST_BYTES = 2**32  # of some 4 * 10**7 images
_ANEW = "make it anew from the tar files with sat-vg shard --index DIR"


class Shard(NamedTuple):
    """A tar file."""

    name: str  # without a folder
    split: str  # train, val or test
    num_bytes: int
    sha256: str  # of its bytes, in hexadecimal digits


class Sample(NamedTuple):
    """An image in a shard."""

    name: str  # of the file in the tar
    label: int  # place in ``class_names``, or in ``label_sets`` where there are some; -1: not known yet
    offset: int  # of its first byte in the tar
    size: int  # in bytes
    crc: int  # CRC-32 of its bytes


class ShardIndex(NamedTuple):
    """What ``shards.json`` holds."""

    class_names: tuple[str, ...]
    label_sets: tuple[tuple[int, ...], ...] | None  # as in ``Split``
    plan: str  # hash of the images and settings that the shards were written from; empty where others wrote them
    shards: dict[Shard, tuple[Sample, ...]]  # the images of each tar file, in their order

    def of_part(self, part: str) -> dict[Shard, tuple[Sample, ...]]:
        """The shards of a split."""
        return {shard: samples for shard, samples in self.shards.items() if shard.split == part}


class _UnsoundError(Exception):
    """Says in which place an index is unsound."""


def write_index(path: Path, index: ShardIndex) -> None:
    """Write an index, atomically, one line for each shard. Raises OSError where it cannot be written."""
    head = {"format": _FORMAT, "version": _VERSION, **index._asdict()}
    del head["shards"]
    names = ("name", "split", "bytes", "sha256", "samples")
    lines = ",\n".join(
        json.dumps(dict(zip(names, (*shard, samples), strict=True))) for shard, samples in index.shards.items()
    )
    begin = json.dumps(head, indent=1).removesuffix("\n}")
    write_text(path, f'{begin},\n "shards": [\n{lines}\n ]\n}}\n')


def read_index(path: Path) -> ShardIndex:
    """Read and check an index. Raises DataError where it is missing, damaged, of another version, or made up."""
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


def is_sample_name(name: str) -> bool:
    """Whether a name in a tar can stand in a path: relative, without ``..``, line breaks and control characters."""
    parts = PurePosixPath(name).parts
    return bool(parts) and name.isprintable() and not name.startswith("/") and ".." not in parts


def _index_of(content: dict[str, Any]) -> ShardIndex:
    class_names = tuple(map(same_form, _list_of(content, "class_names", str)))
    if len(class_names) < 2 or len(set(class_names)) < len(class_names) or not all(class_names):
        raise _UnsoundError("class_names are fewer than two, or one of them is there twice or empty")
    sets = None
    if content.get("label_sets") is not None:
        sets = tuple(tuple(one) for one in _list_of(content, "label_sets", list))
        for one in sets:
            if not all(_is_below(len(class_names), place) for place in one) or sorted(set(one)) != list(one):
                raise _UnsoundError(f"label_sets holds {_shown(list(one))}, which are no places of classes")
    num_labels = len(class_names) if sets is None else len(sets)
    shards: dict[Shard, tuple[Sample, ...]] = {}
    names = set()
    for entry in _list_of(content, "shards", dict):
        shard = _shard_of(entry)
        if shard.name in names:
            raise _UnsoundError(f"the shard {shard.name!r} is there twice")
        names.add(shard.name)
        shards[shard] = samples = tuple(_samples_of(entry, shard, num_labels))
        if len({sample.name for sample in samples}) < len(samples):
            raise _UnsoundError(f"the shard {shard.name!r} has two images of the same name")
    return ShardIndex(class_names, sets, str(content.get("plan", "")), shards)


def _shard_of(entry: dict[str, Any]) -> Shard:
    name, split, size, digest = (entry.get(key) for key in ("name", "split", "bytes", "sha256"))
    if not isinstance(name, str) or not SHARD_NAME.fullmatch(name):
        raise _UnsoundError(
            f"the shard name {_shown(name)} is no plain name of a .tar file (letters, digits, '_', '-' and '.')"
        )
    if split not in PARTS:
        raise _UnsoundError(
            f"the shard {name!r} is of the split {_shown(split)}, which is none of {', '.join(PARTS)}"
        )
    if type(size) is not int or size < 0 or not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise _UnsoundError(f"the shard {name!r} has no number of bytes or no SHA-256")
    return Shard(name, split, size, digest)


def _samples_of(entry: dict[str, Any], shard: Shard, num_labels: int) -> Iterator[Sample]:
    for row in _list_of(entry, "samples", list):
        is_sound = len(row) == 5 and isinstance(row[0], str) and is_sample_name(row[0])
        is_sound = is_sound and _is_below(num_labels, row[1]) and all(_is_below(2**64, value) for value in row[2:])
        if not is_sound or row[2] + row[3] > shard.num_bytes:
            raise _UnsoundError(f"the shard {shard.name!r} has an entry {_shown(row)}, which is no image in it")
        yield Sample(*row)


def _list_of(entry: dict[str, Any], key: str, kind: type) -> list[Any]:
    values = entry.get(key)
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise _UnsoundError(f"{key} is {_shown(values)}")
    return values


def _is_below(limit: int, value: object) -> bool:
    return type(value) is int and 0 <= value < limit


def _shown(value: object) -> str:
    return shortened(repr(value), 60)
