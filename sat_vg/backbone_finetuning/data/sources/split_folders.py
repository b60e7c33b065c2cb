"""Folders of train, val and test by their usual names: ``Train``, ``training``, ``seg_train``, ``valid``, ``dev``."""

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from sat_vg.backbone_finetuning.data.sources.class_folders import entries_of, is_folder, is_image, listing, subfolders
from sat_vg.backbone_finetuning.data.sources.class_names import same_form
from sat_vg.backbone_finetuning.utils.errors import DataError

# The words, in the order in which they are taken where a data set has several for one split.
_WORDS = {
    "train": ("train", "training", "trn", "trainval"),
    "val": ("val", "valid", "validation", "validate", "dev", "eval", "evaluation"),
    "test": ("test", "testing", "holdout"),
}
_ROLES = {word: role for role, words in _WORDS.items() for word in words}
_AFTER = re.compile(r"(?<=.)(set|data|images?|imgs?|split|folder)$")  # trainset, testdata


def role_of(name: str) -> str | None:
    """What a folder's name says that it holds: ``train``, ``val`` or ``test``; None: nothing, or more than one."""
    roles = {_ROLES[word] for word in _words_of(name) if word in _ROLES}
    return roles.pop() if len(roles) == 1 else None


def _folders_for(role: str, names: Sequence[str]) -> list[str]:
    """Of the names of folders those for a split: the one with the most usual word, or several with the same."""
    found = [name for name in names if role_of(name) == role]
    ranks = {
        name: min(_WORDS[role].index(word) for word in _words_of(name) if word in _WORDS[role]) for name in found
    }
    return [name for name in found if ranks[name] == min(ranks.values())]


def _words_of(name: str) -> list[str]:
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    return [_AFTER.sub("", word.lower()) for word in words]


def find_splits(root: Path, names: dict[str, str]) -> dict[str, Path]:
    """The folders of train, val and test in ``root``, which ``names`` calls so; none where ``root`` holds classes.

    Where one has its usual name (``train``) and is not there, another one with a usual name for it is taken
    (``Training``), if it holds folders and no images.
    """
    folders = subfolders(root)
    found = {role: root / name for role, name in names.items() if (root / name).is_dir()}
    if "train" in found:
        # A class may be called "train", but then it holds no folders.
        others = set(folders) - {names["train"]}
        if not (subfolders(found["train"]) or not others or names["val"] in others):
            return {}
    else:
        found = {role: folder for role, folder in found.items() if subfolders(folder)}
    seeming = [name for name in folders if name not in names.values() and _holds_only_folders(root / name)]
    for role, name in names.items():
        if role not in found and name == role:
            several = _folders_for(role, seeming)
            if len(several) > 1 and role != "test":  # of train or val nobody could tell which is meant
                raise DataError(
                    f"{str(root)!r} has {len(several)} folders that could be {role}: {listing(several)}; name the "
                    f"one that is meant with --{role}_split"
                )
            found |= {role: root / several[0]} if len(several) == 1 else {}
    others_are_splits = all(name in names.values() or role_of(name) for name in folders)
    is_sure = names["train"] in folders or len(found) > 1 or others_are_splits
    if "train" in found and is_sure:
        train_classes = set(map(same_form, subfolders(unpacked(found["train"], ()))))
        return {
            role: folder
            for role, folder in found.items()
            if folder.name in names.values()  # as it was asked for
            or train_classes & set(map(same_form, subfolders(unpacked(folder, train_classes))))
        }
    if "val" in found and "train" not in found:
        raise DataError(
            f"{str(root)!r} has a folder {found['val'].name!r} but no {names['train']!r}; it holds "
            f"{listing(folders)}. Rename the folder to train on, or name it with --train_split"
        )
    return {}


def describe_folders(found: dict[str, Path], names: dict[str, str]) -> str:
    """Which folders were taken for which split, where these are not those that were named."""
    if all(folder.name == names[role] for role, folder in found.items()):
        return ""
    return ", split folders " + ", ".join(f"{found[role].name!r} ({role})" for role in names if role in found)


def check_layout(root: Path, class_names: Sequence[str]) -> list[str]:
    """A line where the "classes" seem to be something else: splits, parts of the data set, folders around splits."""
    inner = {name: set(subfolders(root / name)) for name in subfolders(root) if _holds_only_folders(root / name)}
    around = [name for name, folders in inner.items() if {"train"} < set(map(role_of, folders)) - {None}]
    if around:
        held = listing(sorted(inner[around[0]]))
        several = (
            f"the class folders {listing(around)} hold the folders {held}. Splits are read from above the classes: "
            "sort the images as ROOT/train/CLASS and ROOT/val/CLASS; else those of all splits are mixed"
        )
        one = (
            f"the class folder {around[0]!r} holds the folders {held}. If these are the splits, give this folder: "
            f"{str(root / around[0])!r}"
        )
        return [several if len(around) > 1 else one]
    within = {
        f"{name}/{folder}"
        for name in subfolders(root)
        if name not in inner
        for folder in subfolders(root / name)
        if len(_words_of(folder)) == 1 and role_of(folder) is not None
    }
    if within:
        return [
            f"{listing(sorted(within))} beside images of the class: if these are images of another split, they are "
            "mixed with the others. Splits are read from above the classes: sort the images as ROOT/train/CLASS and "
            "ROOT/val/CLASS"
        ]
    if len(inner) < max(2, len(class_names)):
        return []
    common, every = set.intersection(*inner.values()), set.union(*inner.values())
    if len(common) < 2 or 2 * len(common) < len(every):
        return []
    first, second = class_names[:2]
    return [
        f"the {len(inner)} class folders {listing(class_names)} all hold the folders {listing(sorted(common))} and "
        f"no images directly. If these are the classes, give one of the folders ({str(root / first)!r}), or say "
        f"which is train and which val: --train_split {first} --val_split {second}"
    ]


def holds_only_images(folder: Path) -> bool:
    """Whether there are images directly in it and no folders."""
    entries = entries_of(folder)
    return any(is_image(entry.name) for entry in entries) and not any(map(is_folder, entries))


def _holds_only_folders(folder: Path) -> bool:
    """Whether there are folders in it and no images directly."""
    entries = entries_of(folder)
    return any(map(is_folder, entries)) and not any(is_image(entry.name) for entry in entries)


def unpacked(folder: Path, class_names: Collection[str]) -> Path:
    """The folder itself, or the only one in it where that is no class and holds the classes: ``test/test/CLASS``."""
    names = subfolders(folder)
    if len(names) != 1 or same_form(names[0]) in class_names or not _holds_only_folders(folder):
        return folder
    inner = folder / names[0]
    return inner if len(subfolders(inner)) > (0 if class_names else 1) else folder
