"""Splits of images that are listed one by one, each with its classes and maybe its split."""

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from sat_vg.backbone_finetuning.data.sources.class_names import describe_unknown, same_form
from sat_vg.backbone_finetuning.data.sources.source import ImageQuery
from sat_vg.backbone_finetuning.data.sources.splits import Split, Splits, as_split, describe_splits, split_off
from sat_vg.backbone_finetuning.utils.errors import DataError
from sat_vg.backbone_finetuning.utils.seeding import Purpose, derive_seed, numpy_generator

_NO_CLASS = -1  # images without any class are divided as if that were one more class


class ListedImage(NamedTuple):
    """An image of a list."""

    path: str  # the file to open
    classes: tuple[str, ...]  # by name; one, unless images can have several or none
    place: str  # where it is listed, for messages


def splits_of(
    parts: dict[str, list[ListedImage]], place: str, query: ImageQuery, how: str, *, is_multi_label: bool = False
) -> Splits:
    """Splits with the listed images of ``train``, ``val`` and ``test``, whatever order they are listed in.

    With no key ``val``, val is split off train by the query's share and seed, for the reason ``how``, which begins
    with its punctuation. ``place`` says in messages where the images are listed.

    Raises:
        DataError: train has fewer than two classes, another part has a class that train lacks, or nothing is left
            for val.
    """
    parts = {
        part: [image._replace(classes=tuple(map(same_form, image.classes))) for image in images]
        for part, images in parts.items()
    }
    names = tuple(sorted({name for image in parts["train"] for name in image.classes}))
    if len(names) < 2:
        held = f"only one class, {names[0]!r}" if names else "no class at all"
        raise DataError(
            f"{place}: train has {held}, but a classifier needs at least two to tell apart; add images of others"
        )
    for part, images in parts.items():
        _require_known(images, part, names, place)
    listed = (
        _label_sets(parts, names)
        if is_multi_label
        else {part: as_split(part, _by_class(images, names), names) for part, images in parts.items()}
    )
    if "val" in parts:
        return describe_splits(listed["train"], listed["val"], listed.get("test"), how=f" ({place})")
    train, val = _draw(listed["train"], query)
    drawn = describe_splits(train, val, listed.get("test"), how=f" ({place}){how}")
    return replace(drawn, val_is_drawn=True)


def _require_known(images: Sequence[ListedImage], part: str, names: Sequence[str], place: str) -> None:
    """Refuse classes that train lacks."""
    known = frozenset(names)
    unknown = {name: image.place for image in images for name in image.classes if name not in known}
    if unknown:
        raise DataError(
            f"{place}: {part} has classes that train lacks: {describe_unknown(unknown, names)}; classes are matched "
            "by name, in which case counts: rename them, or add images of them to train"
        )


def _by_class(images: Sequence[ListedImage], names: tuple[str, ...]) -> dict[str, list[str]]:
    """Paths by class, both sorted."""
    classes: dict[str, list[str]] = {name: [] for name in names}
    for image in images:
        classes[image.classes[0]].append(image.path)
    return {name: sorted(paths, key=_sorting_key) for name, paths in classes.items()}


def _label_sets(parts: dict[str, list[ListedImage]], names: tuple[str, ...]) -> dict[str, Split]:
    """Each part with the combinations of classes that occur in any of them."""
    place = {name: index for index, name in enumerate(names)}
    found = {
        part: [(tuple(sorted({place[name] for name in image.classes})), image.path) for image in images]
        for part, images in parts.items()
    }
    sets = tuple(sorted({classes for entries in found.values() for classes, _ in entries}))
    label_of = {classes: label for label, classes in enumerate(sets)}
    splits = {}
    for part, entries in found.items():
        entries.sort(key=lambda entry: (entry[0], _sorting_key(entry[1])))
        paths = tuple(path for _, path in entries)
        splits[part] = Split(part, paths, tuple(label_of[classes] for classes, _ in entries), names, sets)
    return splits


def _draw(train: Split, query: ImageQuery) -> tuple[Split, Split]:
    """Train and val out of train."""
    if train.label_sets is None:
        return split_off(train.by_class(), query.val_fraction, query.seed)
    # By path, as the numbers of the labels depend on the images of the test split too.
    by_path = sorted(range(len(train)), key=lambda index: _sorting_key(train.paths[index]))
    labels = [train.labels[index] for index in by_path]
    chosen = split_label_sets(labels, train.label_sets, query.val_fraction, query.seed)
    of_val = {by_path[position] for position in chosen}
    rest = [index for index in range(len(train)) if index not in of_val]
    return train.take(rest, "train"), train.take(sorted(of_val), "val")


def _sorting_key(path: str) -> str:
    return path.replace(os.sep, "/")


def split_label_sets(
    labels: Sequence[int], label_sets: Sequence[Sequence[int]], fraction: float, seed: int
) -> list[int]:
    """Choose the images of val by iterative stratification (Sechidis et al., 2011); returns their sorted indices.

    The class that has the fewest images left is divided first, as it leaves the least choice: each of its images goes
    to the side that still wants more of the class; where both want as many, to the one that wants more images at all.

    Args:
        labels: of each image, an index into ``label_sets``.
        label_sets: the classes that each label stands for; maybe none.
        fraction: share of each class that becomes val, in (0, 1). At least one image of a class is wanted on either
            side; a class of one image is train's.
        seed: of the order in which images are taken; the split depends on nothing else.
    """
    classes_of = [tuple(label_sets[label]) or (_NO_CLASS,) for label in labels]
    members: dict[int, list[int]] = defaultdict(list)
    for image in numpy_generator(derive_seed(seed, Purpose.SPLIT)).permutation(len(labels)).tolist():
        for name in classes_of[image]:
            members[name].append(image)
    left = {name: len(images) for name, images in members.items()}
    # What each side still wants, of every class and of all images together.
    val = {name: _wanted(count, fraction) for name, count in left.items()}
    train = {name: count - val[name] for name, count in left.items()}
    val_images = _wanted(len(labels), fraction)
    train_images = len(labels) - val_images
    chosen: dict[int, bool] = {}
    while left:
        rarest = min(left, key=lambda name: (left[name], name))
        for image in members[rarest]:
            if image in chosen:
                continue
            in_val = (val[rarest], val_images) > (train[rarest], train_images)
            chosen[image] = in_val
            side = val if in_val else train
            val_images, train_images = val_images - in_val, train_images - (not in_val)
            for name in classes_of[image]:
                side[name] -= 1
                left[name] -= 1
        left = {name: count for name, count in left.items() if count}
    return sorted(image for image, in_val in chosen.items() if in_val)


def _wanted(count: int, fraction: float) -> float:
    """How many of so many images val is to have; one at the least, and not all."""
    return min(max(1.0, fraction * count), count - 1.0)
