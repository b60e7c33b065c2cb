"""Which images there are and what they are labelled: class folders, split into train, val and test.

Two layouts are read: a root with ``train/`` and ``val/`` (``test/`` if there is one), each with a folder per
class (see ``class_folders``); or a root with a folder per class, of which each class is split by seed. Split folders
may have other usual names (see ``split_folders``).
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sat_vg.backbone_finetuning.data.sources import class_folders, file_names, split_folders
from sat_vg.backbone_finetuning.data.sources.class_names import describe_unknown, look_alikes
from sat_vg.backbone_finetuning.utils.errors import DataError
from sat_vg.backbone_finetuning.utils.seeding import Purpose, derive_seed, numpy_generator


@dataclass(frozen=True)
class Split:
    """One of train, val and test."""

    name: str  # which of them
    paths: tuple[str, ...]  # image files (``root`` as it was given and what follows), by class and then by path
    labels: tuple[int, ...]  # index into ``class_names`` per image; into ``label_sets`` where there are some
    class_names: tuple[str, ...]  # the classes of train, sorted; the same in all splits
    # where an image can have several classes or none: every combination that occurs, each as sorted indices into
    # ``class_names``; the same in all splits
    label_sets: tuple[tuple[int, ...], ...] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def is_multi_label(self) -> bool:
        """Whether an image can have several classes or none."""
        return self.label_sets is not None

    def classes_of(self, label: int) -> tuple[int, ...]:
        """The classes that a label stands for."""
        return (label,) if self.label_sets is None else self.label_sets[label]

    def name_of(self, label: int) -> str:
        """The names of a label's classes, with commas between."""
        return ", ".join(self.class_names[index] for index in self.classes_of(label)) or "(none)"

    def take(self, indices: Sequence[int], name: str | None = None) -> "Split":
        """The images at some places, in that order."""
        return replace(
            self,
            name=name or self.name,
            paths=tuple(self.paths[index] for index in indices),
            labels=tuple(self.labels[index] for index in indices),
        )

    def by_class(self) -> dict[str, list[str]]:
        """Paths by class, where each image has one."""
        classes: dict[str, list[str]] = {name: [] for name in self.class_names}
        for path, label in zip(self.paths, self.labels, strict=True):
            classes[self.class_names[label]].append(path)
        return classes

    def class_counts(self) -> list[int]:
        """Number of images per class, in the order of ``class_names``."""
        counts = [0] * len(self.class_names)
        for label, count in Counter(self.labels).items():
            for index in self.classes_of(label):
                counts[index] += count
        return counts

    def absent_classes(self) -> list[str]:
        """The classes that no image has."""
        return [name for name, count in zip(self.class_names, self.class_counts(), strict=True) if not count]


@dataclass(frozen=True)
class Splits:
    """Train, val and, where there is a test folder, test."""

    train: Split  # training images
    val: Split  # validation images
    test: Split | None  # test images, or None
    how: str  # for the description, where the splits come from; begins with its punctuation
    val_is_drawn: bool = False  # val was split off train by seed, and not given as a folder
    notes: tuple[str, ...] = ()  # warnings about names and layout, a line each
    num_left_out: int = 0  # images that were here and cannot be used
    others: str = ""  # for the description, files that are no images; begins with its punctuation

    @property
    def description(self) -> str:
        """One line for the terminal, with the numbers of images as they are."""
        sizes = ", ".join(f"{len(split)} {split.name}" for split in self.parts)
        left_out = f"; {self.num_left_out} more left out" if self.num_left_out else ""
        return (
            f"{self.num_images} images in {len(self.class_names)} classes{self.how}: {sizes}{left_out}{self.others}"
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, sorted; a label is an index into them."""
        return self.train.class_names

    @property
    def parts(self) -> tuple[Split, ...]:
        """Train, val and, where there is one, test."""
        return (self.train, self.val) if self.test is None else (self.train, self.val, self.test)

    @property
    def num_images(self) -> int:
        """Of all parts."""
        return sum(map(len, self.parts))

    def without(self, bad: Collection[str]) -> "Splits":
        """The same splits with the paths in ``bad`` left out; labels and class names stay as they are.

        A test split of which nothing remains becomes None.
        """
        left_out = frozenset(bad)
        if not left_out:
            return self
        train, val, *test = (
            split.take([index for index, path in enumerate(split.paths) if path not in left_out])
            for split in self.parts
        )
        kept = replace(self, train=train, val=val, test=test[0] if test and len(test[0]) else None)
        return replace(kept, num_left_out=self.num_left_out + self.num_images - kept.num_images)


def load_class_folders(
    root: Path, *, train_split: str = "train", val_split: str = "val", val_fraction: float = 0.2, seed: int = 0
) -> Splits:
    """List the images of a data set of class folders; a label is the place of its class among train's, sorted.

    Args:
        root: a folder that holds either split folders or class folders (see the top of this module).
        train_split: name of the train folder.
        val_split: name of the val folder; if it is missing, val is split off train.
        val_fraction: share of each class that becomes val where val is split off, in (0, 1). At least one
            image of a class goes to val and at least one stays in train; a class of one image is train's.
        seed: seed of that split, which depends on nothing else but the names of folders and files.

    Raises:
        DataError: the folder is missing or has no images, an empty class folder or fewer than two classes,
            or val or test has a class that train lacks.
    """
    root = Path(root)
    class_folders.require_folder(root)
    left_out: Counter[str] = Counter()
    asked = {"train": train_split, "val": val_split}
    if "test" not in asked.values():  # else that folder is val, as asked for
        asked["test"] = "test"
    found = split_folders.find_splits(root, asked)
    unlabelled = ""
    if "test" in found and split_folders.holds_only_images(found["test"]):  # as in competitions
        unlabelled = f" ({found.pop('test').name!r} has no class folders, so its images are not labelled)"
    class_root = split_folders.unpacked(found["train"], ()) if found else root
    classes = class_folders.require_classes(class_root, class_folders.scan_classes(class_root, left_out), left_out)
    names = tuple(classes)
    held = {
        part: _read_held_out(split_folders.unpacked(found[part], names), part, names, found["train"].name, left_out)
        for part in ("val", "test")
        if part in found
    }
    train, val = as_split("train", classes, names), held.get("val")
    how, is_drawn = split_folders.describe_folders(found, asked), val is None
    if val is None:
        train, val = split_off(classes, val_fraction, seed)
        share = f"{100 * val_fraction:g}% of {found['train'].name!r} by seed {seed}" if found else ""
        how += f", no folder {val_split!r}, so val is {share}" if found else f", split by seed {seed}"
    used = {folder.name for folder in found.values()}
    beside = class_folders.subfolders(root) if found else []
    unused = [name for name in beside if name not in used and class_folders.entries_of(root / name)]
    how += (f"; not used: {class_folders.listing(unused)}" if unused else "") + unlabelled
    splits = describe_splits(train, val, held.get("test"), how=how)
    notes = (*splits.notes, *class_folders.check_forms(class_root), *class_folders.describe_runs(class_root))
    notes += () if found else tuple(split_folders.check_layout(root, names))
    notes += tuple(file_names.check_names(classes, is_drawn))
    return replace(splits, others=class_folders.describe_left_out(left_out), notes=notes, val_is_drawn=is_drawn)


def describe_splits(train: Split, val: Split, test: Split | None, *, how: str) -> Splits:
    """The splits with their description; ``how`` follows the number of classes in it.

    Raises:
        DataError: val is empty.
    """
    if not len(val):
        raise DataError("no image is left for val, as train keeps one per class; add images, or a val folder")
    return Splits(train, val, test, how, notes=tuple(look_alikes(train.class_names)))


def as_split(name: str, classes: dict[str, list[str]], class_names: tuple[str, ...]) -> Split:
    """The split ``name`` of the paths of each class, in the order of ``class_names``."""
    pairs = [(path, label) for label, key in enumerate(class_names) for path in classes.get(key, ())]
    return Split(name, tuple(path for path, _ in pairs), tuple(label for _, label in pairs), class_names)


def split_off(classes: dict[str, list[str]], val_fraction: float, seed: int) -> tuple[Split, Split]:
    """Split each class by a permutation of its own, whatever the sizes of the others."""
    train, val = dict(classes), dict(classes)
    for index, (name, paths) in enumerate(classes.items()):
        count = min(max(1, round(len(paths) * val_fraction)), len(paths) - 1)
        order = numpy_generator(derive_seed(seed, Purpose.SPLIT, index)).permutation(len(paths))
        chosen = {int(position) for position in order[:count]}
        train[name] = [path for position, path in enumerate(paths) if position not in chosen]
        val[name] = [path for position, path in enumerate(paths) if position in chosen]
    return as_split("train", train, tuple(train)), as_split("val", val, tuple(train))


def _read_held_out(
    folder: Path, name: str, class_names: tuple[str, ...], train_split: str, left_out: "Counter[str]"
) -> Split:
    """Read val or test, labelled by train's classes; a class that is missing here is no error."""
    classes = class_folders.scan_classes(folder, left_out)
    unknown = [key for key in classes if key not in class_names]
    if unknown:
        shown = describe_unknown(dict.fromkeys(unknown, ""), class_names)
        raise DataError(
            f"{str(folder)!r} has classes that {train_split!r} lacks: {shown}; classes are matched by name, in which "
            "case counts: rename or remove these folders, or add them to train"
        )
    split = as_split(name, classes, class_names)
    if not len(split):
        if split_folders.holds_only_images(folder):
            raise DataError(
                f"{str(folder)!r} holds images but no class folders; sort them as {class_folders.LAYOUTS}"
            )
        raise class_folders.no_images(folder, left_out)
    return split
