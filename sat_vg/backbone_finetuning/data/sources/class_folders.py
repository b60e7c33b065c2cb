"""Class folders and the images in them, at any depth, recognised by their ending.

Names that begin with a dot, and folders that systems and archives leave behind, are skipped. Names of classes are the
same in composed and decomposed Unicode. Symbolic links are followed, also out of the root; a real folder is read once
per class, and a link inside a class that leads to a folder around that class is not followed: both end loops, and the
second keeps the images of other classes out of this one.
"""

import difflib
from collections import Counter
from pathlib import Path

from sat_vg.backbone_finetuning.data.sources.class_names import same_form
from sat_vg.backbone_finetuning.data.sources.image_files import (
    IMAGE_ENDINGS,
    count_left_out,
    describe_left_out,
    entries_of,
    is_folder,
    is_image,
    listing,
    no_images,
    subfolders,
)
from sat_vg.backbone_finetuning.utils.errors import DataError

_FILES_OF_RUNS = ("metrics.jsonl", "last.pt", "best_model.pt")
_ARCHIVE_ENDINGS = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".rar", ".7z")
LAYOUTS = "ROOT/CLASS/image.jpg or ROOT/train/CLASS/image.jpg with ROOT/val/CLASS/image.jpg"


def scan_classes(folder: Path, left_out: Counter[str]) -> dict[str, list[str]]:
    """Images per class, both sorted; folders whose names differ in their Unicode form alone are one class.

    Other files are counted by their ending.
    """
    classes: dict[str, list[str]] = {}
    for name in sorted(subfolders(folder), key=same_form):
        if _is_of_a_run(folder / name):
            continue
        classes.setdefault(same_form(name), []).extend(_images_within(folder / name, left_out))
    return classes


def _is_of_a_run(folder: Path) -> bool:
    """Whether a training has put its log or checkpoints there, beside the classes; its pictures are no class."""
    return any((folder / name).is_file() for name in _FILES_OF_RUNS)


def describe_runs(folder: Path) -> list[str]:
    """A line for folders of runs among the class folders."""
    names = [name for name in subfolders(folder) if _is_of_a_run(folder / name)]
    where = "another place: --log_dir DIR --checkpoint_dir DIR"
    return (
        [f"{listing(names)} in {str(folder)!r} is of a run and not read as a class; give runs {where}"]
        if names
        else []
    )


def check_forms(folder: Path) -> list[str]:
    """A line for class folders that are one class, as their names differ in their Unicode form alone."""
    counts = Counter(map(same_form, subfolders(folder)))
    return [
        f"{str(folder)!r} has {count} folders named {name!r}, which differ in the Unicode form of the letters alone; "
        "they are one class"
        for name, count in counts.items()
        if count > 1
    ]


def _images_within(folder: Path, left_out: Counter[str]) -> list[str]:
    """Paths of all images in a class folder, sorted by their POSIX path relative to it."""
    found: list[tuple[str, str]] = []
    # The folders around the class, by the way that leads here and by where it really lies.
    visited: set[Path] = {*folder.resolve().parents, *(parent.resolve() for parent in folder.absolute().parents)}
    pending = [(folder, "")]
    while pending:
        current, prefix = pending.pop()
        real = current.resolve()
        if real in visited:
            continue
        visited.add(real)
        entries = entries_of(current)
        for entry in entries:
            if is_image(entry.name) and not is_folder(entry):
                found.append((prefix + entry.name, entry.path))
            elif not is_folder(entry):
                count_left_out(entry.name, left_out)
        # In a fixed order (the last is taken first), as it decides under which name a linked folder is read.
        pending += [(current / e.name, f"{prefix}{e.name}/") for e in reversed(entries) if is_folder(e)]
    return [path for _, path in sorted((same_form(name), path) for name, path in found)]


def require_folder(root: Path) -> None:
    """Require a folder; else raise an error that names the nearest one that exists."""
    try:
        exists, is_folder = root.exists(), root.is_dir()
    except OSError as error:
        raise DataError(f"cannot open {str(root)!r}: {error.strerror}; check path and permissions") from None
    if is_folder:
        return
    if exists:
        archive = root.name.lower().endswith(_ARCHIVE_ENDINGS)
        remedy = "unpack it and give the folder" if archive else "give the folder of the class folders"
        raise DataError(f"{str(root)!r} is {'an archive' if archive else 'a file'}, not a folder; {remedy}")
    parent = root.absolute()
    while not parent.is_dir() and parent != parent.parent:
        missing, parent = parent.name, parent.parent
    by_lower = {entry.name.lower(): entry.name for entry in entries_of(parent)}
    close = [by_lower[key] for key in difflib.get_close_matches(missing.lower(), list(by_lower), cutoff=0.5)]
    holds = f"which holds {listing(close)}" if close else f"which holds nothing named like {missing!r}"
    raise DataError(f"there is no folder {str(root)!r}; the nearest that exists is {str(parent)!r}, {holds}")


def require_classes(folder: Path, classes: dict[str, list[str]], left_out: Counter[str]) -> dict[str, list[str]]:
    """Require at least two class folders with images; else raise an error with a hint."""
    place = repr(str(folder))
    if not classes:
        files = [entry.name for entry in entries_of(folder)]
        archives = [name for name in files if name.lower().endswith(_ARCHIVE_ENDINGS)]
        if any(map(is_image, files)):
            raise DataError(f"{place} holds images but no class folders; sort them as {LAYOUTS}")
        if archives:
            raise DataError(f"{place} holds no class folders but archives: {listing(archives)}; unpack them")
        raise DataError(f"{place} holds no class folders; images belong in {LAYOUTS}")
    only = repr(next(iter(classes))) if len(classes) == 1 else None
    inner = _find_nested(folder) if only else None
    if inner is not None:
        raise DataError(f"{place} holds only the folder {only}, a single class; did you mean {str(inner)!r}?")
    if not any(classes.values()):
        raise no_images(folder, left_out)
    if only:
        raise DataError(
            f"{place} holds one class, {only}, but a classifier needs at least two to tell apart; add a "
            "folder per further class, or give the folder above if this is a class itself"
        )
    empty = [name for name, paths in classes.items() if not paths]
    if empty:
        folders = "class folder" if len(empty) == 1 else "class folders"
        raise DataError(
            f"{place} has {len(empty)} {folders} without images: {listing(empty)}; fill or "
            f"remove them (endings looked for: {' '.join(IMAGE_ENDINGS)}{describe_left_out(left_out)})"
        )
    return classes


def _find_nested(folder: Path) -> Path | None:
    """The folder with several folders that lies below a chain of single ones, as unpacking leaves behind."""
    names = subfolders(folder)
    for _ in range(4):  # a chain of links might have no end
        if len(names) != 1:
            break
        folder = folder / names[0]
        names = subfolders(folder)
    return folder if len(names) > 1 else None
