"""Copies of images: exact ones by a fingerprint of their pixels, near ones by a perceptual hash.

A copy on both sides of a split makes validation a test of memory. Where the split is drawn by seed, copies are
kept on one side of it; where the folders give the split, copies across it stop the training.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sat_vg.backbone_finetuning.configs.choices import OnDuplicates
from sat_vg.backbone_finetuning.data.sources.splits import Split, Splits
from sat_vg.backbone_finetuning.utils.errors import DataError
from sat_vg.backbone_finetuning.utils.printable import counted, list_lines

_LISTED = 5
_BANDS = 8  # of 16 bits each: hashes that differ in fewer bits than there are bands agree in one
_WORD = np.uint16
NEAR_BITS = _BANDS - 1
_NEAR_GREY = 6.0  # mean difference of two thumbnails that still count as near, of 255
_CROWD = 2000
_NEIGHBOURS = 50
_BIT_COUNT = np.array([value.bit_count() for value in range(256)], dtype=np.uint8)


@dataclass(frozen=True)
class Place:
    """Where an image lies in the splits."""

    split: str
    path: str
    label: int


@dataclass(frozen=True)
class Copies:
    """Images with the same pixels, two or more; train's first, then val's and test's, by path."""

    places: tuple[Place, ...]

    @property
    def across(self) -> bool:
        """Whether they lie in different splits."""
        return len({place.split for place in self.places}) > 1

    @property
    def conflicting(self) -> bool:
        """Whether they have different labels."""
        return len({place.label for place in self.places}) > 1

    def __str__(self) -> str:
        shown = " = ".join(repr(place.path) for place in self.places[:_LISTED])
        return shown + (f" and {len(self.places) - _LISTED} more" if len(self.places) > _LISTED else "")


def find_copies(splits: Splits, contents: Mapping[str, int]) -> list[Copies]:
    """All groups of images with the same pixels, whose fingerprints are ``contents`` by path."""
    by_content: dict[int, list[Place]] = defaultdict(list)
    for split in splits.parts:
        for path, label in zip(split.paths, split.labels, strict=True):
            by_content[contents[path]].append(Place(split.name, path, label))
    return [Copies(tuple(places)) for places in by_content.values() if len(places) > 1]


def with_copies_together(splits: Splits, contents: Mapping[str, int]) -> tuple[Splits, list[Copies], int]:
    """The splits as they are trained on: where val was drawn by seed, no copies lie on both of its sides.

    Returns:
        The splits, all copies in them, and how many images changed sides.
    """
    copies = find_copies(splits, contents)
    if not splits.val_is_drawn or not copies:
        return splits, copies, 0
    together = keep_together(splits, copies)
    moved = len(set(splits.val.paths).symmetric_difference(together.val.paths))
    return (together, find_copies(together, contents), moved) if moved else (splits, copies, 0)


def resolve_copies(splits: Splits, contents: Mapping[str, int], policy: OnDuplicates) -> tuple[Splits, list[str]]:
    """Keep copies from lying on both sides of a split; returns the splits, nothing left out, and lines for the user.

    A val that was drawn by seed gets no copies of train's images. Copies across splits that the folders give are an
    error, or with ``"warn"`` a line. ``"ignore"`` does nothing. ``contents`` are fingerprints of the pixels by path.

    Raises:
        DataError: there are copies across the splits, and ``policy`` is ``"error"``.
    """
    if policy == "ignore":
        return splits, []
    splits, copies, moved = with_copies_together(splits, contents)
    notes = []
    if moved:
        notes.append(
            f"copies (the same pixels) are kept on one side of the split: {counted(moved, 'image')} changed sides"
        )
    conflicts = [group for group in copies if group.conflicting]
    if conflicts:
        notes.append(
            f"warning: {counted(len(conflicts), 'image occurs', 'images occur')} with different labels:\n"
            f"{list_lines(conflicts, _LISTED)}"
        )
    across = [group for group in copies if group.across]
    if across:
        message = f"{describe_across(across)}:\n{list_lines(across, _LISTED)}\n"
        if policy == "error":
            raise DataError(
                f"{message}The result would flatter the model. Remove one of each (sat-vg check DIR --json lists "
                "all), or go on all the same with --on_duplicates warn"
            )
        notes.append(f"warning: {message}The result will flatter the model")
    return splits, notes


def describe_across(across: Sequence[Copies]) -> str:
    """How many images lie in more than one split, in words."""
    pairs: dict[tuple[str, str], int] = defaultdict(int)
    for group in across:
        names = sorted({place.split for place in group.places}, key=("train", "val", "test").index)
        for first, second in combinations(names, 2):
            pairs[first, second] += 1
    counts = ", ".join(f"{count} in {first} and {second}" for (first, second), count in pairs.items())
    return f"the same images (by their pixels) lie in more than one split, {counts}"


def keep_together(splits: Splits, copies: Sequence[Copies]) -> Splits:
    """Train and val with every group of copies on the side of the one whose path comes first.

    All other images stay where they are, so the share of val stays about the same however often images are
    copied. A class that would so vanish from train, or from val if train has others of it, keeps its first
    group on that side.

    Raises:
        DataError: nothing would be left for val.
    """
    label_of = {p: n for split in (splits.train, splits.val) for p, n in zip(split.paths, split.labels, strict=True)}
    side = {path: split.name for split in (splits.train, splits.val) for path in split.paths}
    groups = (sorted(place.path for place in group.places if place.path in side) for group in copies)
    torn = sorted(paths for paths in groups if len({side[path] for path in paths}) > 1)
    for paths in torn:
        side.update(dict.fromkeys(paths, side[paths[0]]))
    count = Counter((name, label_of[path]) for path, name in side.items())
    for paths in torn:
        here, there = (side[paths[0]], "val" if side[paths[0]] == "train" else "train")
        labels = Counter(label_of[path] for path in paths)
        leaves_others = all(count[here, label] > number for label, number in labels.items())
        if any(not count[there, label] for label in labels) and (there == "train" or leaves_others):
            side.update(dict.fromkeys(paths, there))
            for label, number in labels.items():
                count[here, label] -= number
                count[there, label] += number
    if "val" not in side.values():
        raise DataError(
            "no image is left for val, as all that could go there are copies of train's images; add images, or "
            "split the copies all the same with --on_duplicates ignore"
        )
    train, val = (_take(splits.train, name, side, label_of) for name in ("train", "val"))
    return replace(splits, train=train, val=val)


def _take(like: Split, name: str, side: Mapping[str, str], label_of: Mapping[str, int]) -> Split:
    chosen = [path for path, where in side.items() if where == name]
    chosen.sort(key=lambda path: (label_of[path], path.replace(os.sep, "/")))  # the order that sources gives
    return replace(like, name=name, paths=tuple(chosen), labels=tuple(label_of[path] for path in chosen))


def find_near(
    hashes: NDArray[np.uint8], thumbnails: NDArray[np.uint8], skip: NDArray[np.bool_] | None = None
) -> list[tuple[int, int]]:
    """Pairs of images ``(i, j)``, ``i < j``, sorted: hashes differ in ``NEAR_BITS`` bits at most, thumbnails little.

    Hashes are compared only where one of eight parts of 16 bits agrees, which no near pair can avoid: time grows with
    the number of images and not with its square. Where thousands share a part (flat images), each is compared with
    its neighbours in the order of the hashes only.

    Args:
        hashes: ``[N, 16]``, of ``perceptual_hash``.
        thumbnails: ``[N, 9, 9]``.
        skip: ``[N]``, images that are compared with none, such as exact copies or flat ones.
    """
    compared = np.arange(len(hashes)) if skip is None else np.flatnonzero(~skip)
    words = np.ascontiguousarray(hashes).view(_WORD)
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.int16)
    found: set[tuple[int, int]] = set()
    for band in range(_BANDS):
        # Equal words side by side; among them in the order of the other words, so that neighbours are near.
        keys = [words[compared, (band + shift) % _BANDS] for shift in reversed(range(_BANDS))]
        order = compared[np.lexsort(keys)]
        starts = np.flatnonzero(np.diff(words[order, band].astype(np.int64), prepend=-1))
        for bucket in np.split(order, starts[1:]):
            if len(bucket) > 1:
                found.update(_near_within(bucket, hashes, flat))
    return sorted(found)


def _near_within(
    bucket: NDArray[np.int64], hashes: NDArray[np.uint8], thumbnails: NDArray[np.int16]
) -> Iterator[tuple[int, int]]:
    reach = len(bucket) if len(bucket) <= _CROWD else _NEIGHBOURS
    for position, index in enumerate(bucket[:-1].tolist()):
        others = bucket[position + 1 : position + 1 + reach]
        near = others[_BIT_COUNT[hashes[others] ^ hashes[index]].sum(axis=1) <= NEAR_BITS]
        if len(near):
            alike = np.abs(thumbnails[near] - thumbnails[index]).mean(axis=1) <= _NEAR_GREY
            yield from ((min(index, other), max(index, other)) for other in near[alike].tolist())


def thumbnail(image: Tensor) -> NDArray[np.uint8]:
    """Mean grey ``[9, 9]`` of parts of an image, uint8 ``[3, H, W]``; of a large one, every k-th pixel is used."""
    pixels = image.permute(1, 2, 0).numpy()
    pixels = pixels[:: max(1, pixels.shape[0] // 64), :: max(1, pixels.shape[1] // 64)]
    grey = pixels.astype(np.float32) @ np.array((0.299, 0.587, 0.114), np.float32)
    for axis in (0, 1):
        if grey.shape[axis] < 9:  # every part needs a pixel
            grey = np.repeat(grey, -(-9 // grey.shape[axis]), axis=axis)
        edges = np.arange(10) * grey.shape[axis] // 9
        widths = np.diff(edges).astype(np.float32)
        grey = np.add.reduceat(grey, edges[:-1], axis=axis) / (widths[:, None] if axis == 0 else widths)
    rounded: NDArray[np.uint8] = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
    return rounded


def perceptual_hash(small: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """128 bits (dHash) as uint8 ``[16]``: whether each part of a thumbnail is darker than its right and lower one."""
    right = small[:8, :-1] < small[:8, 1:]
    below = small[:-1, :8] < small[1:, :8]
    return np.packbits(np.concatenate([right.ravel(), below.ravel()]))
