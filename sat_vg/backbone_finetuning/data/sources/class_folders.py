"""Class folders and the images in them, at any depth, recognised by their ending.

Names that begin with a dot, and folders that systems and archives leave behind, are skipped. Names of classes are the
same in composed and decomposed Unicode. Symbolic links are followed, also out of the root; a real folder is read once
per class, and a link inside a class that leads to a folder around that class is not followed: both end loops, and the
second keeps the images of other classes out of this one.
"""

import difflib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

from sat_vg.backbone_finetuning.data.sources.class_names import same_form
from sat_vg.backbone_finetuning.utils.errors import DataError
from sat_vg.backbone_finetuning.utils.printable import list_some

IMAGE_ENDINGS = (".jpg", ".jpeg", ".jfif", ".png", ".tif", ".tiff", ".webp", ".bmp", ".jp2")
# What lies beside images: their geometry and metadata, tables, texts, and what systems leave behind.
_COMPANIONS = frozenset(
    {
        ".txt", ".csv", ".tsv", ".json", ".geojson", ".xml", ".yaml", ".yml", ".md", ".html", ".pdf", ".log", ".ini",
        ".db", ".lnk", ".url", ".md5", ".sha256", ".py", ".ipynb", ".sh", ".aux", ".ovr", ".msk", ".tfw", ".tifw",
        ".tiffw", ".jgw", ".jpgw", ".jpw", ".pgw", ".pngw", ".bpw", ".wld", ".prj", ".points", ".shp", ".shx", ".dbf",
        ".cpg", ".kml", ".imd", ".rpb", ".rpc", ".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".pt", ".pth", ".npz",
    }
)  # fmt: skip
# What systems and archives put among the folders of a data set.
_SYSTEM_FOLDERS = frozenset(
    {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
)
_FILES_OF_RUNS = ("metrics.jsonl", "last.pt", "best_model.pt")
_ARCHIVE_ENDINGS = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".rar", ".7z")
LAYOUTS = "ROOT/CLASS/image.jpg or ROOT/train/CLASS/image.jpg with ROOT/val/CLASS/image.jpg"
_LISTED = 10  # names shown in a message
_LISTED_ENDINGS = 5


def is_image(name: str) -> bool:
    """Whether a file is an image by its ending."""
    return name.lower().endswith(IMAGE_ENDINGS)


def is_hidden(name: str) -> bool:
    """Whether a name is skipped: it begins with a dot, or a system or an archive has put it there."""
    return name.startswith(".") or name in _SYSTEM_FOLDERS


def entries_of(folder: Path) -> list["os.DirEntry[str]"]:
    """What a folder holds, sorted by name, without hidden names."""
    try:
        with os.scandir(folder) as entries:
            seen = [entry for entry in entries if not is_hidden(entry.name)]
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"cannot list the folder {str(folder)!r}: {reason}; check its permissions") from None
    return sorted(seen, key=lambda entry: entry.name)


def is_folder(entry: "os.DirEntry[str]") -> bool:
    """Whether it is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted."""
    return [entry.name for entry in entries_of(folder) if is_folder(entry)]


def listing(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    return list_some(list(map(repr, names)), _LISTED)


def count_left_out(name: str, left_out: "Counter[str]") -> None:
    """Count a file that is no image by its ending, unless it is of a kind that lies beside images."""
    ending = PurePath(name).suffix.lower()
    if ending not in _COMPANIONS:
        left_out[ending] += 1


def describe_left_out(left_out: "Counter[str]") -> str:
    """How many files are left out by ending, after a semicolon; empty where there are none."""
    if not left_out:
        return ""
    by_count = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    listed = ", ".join(f"{count} {ending or 'without an ending'}" for ending, count in by_count[:_LISTED_ENDINGS])
    more = f" and {len(left_out) - _LISTED_ENDINGS} more endings" if len(left_out) > _LISTED_ENDINGS else ""
    return f"; left out, as their endings are not read: {listed}{more}"


def images_below(folder: Path, left_out: "Counter[str]") -> list[str]:
    """Paths of all images at any depth, sorted; links are followed, and each real folder is read once.

    Raises:
        DataError: there is none, or a folder cannot be listed.
    """
    found = sorted(str(Path(path)) for _, path in _walk(folder, left_out, set()))
    if not found:
        raise no_images(folder, left_out)
    return found


def _walk(folder: Path, left_out: "Counter[str]", visited: set[Path]) -> Iterator[tuple[str, str]]:
    """Of each image at any depth its path from the folder on, and the whole path; visited folders are left out."""
    pending = [(folder, "")]
    while pending:
        current, prefix = pending.pop()
        real = current.resolve()
        if real in visited:
            continue
        visited.add(real)
        entries = entries_of(current)
        for entry in entries:
            if is_folder(entry):
                continue
            if is_image(entry.name):
                yield prefix + entry.name, entry.path
            else:
                count_left_out(entry.name, left_out)
        # In a fixed order (the last is taken first), as it decides under which name a linked folder is read.
        pending += [(current / e.name, f"{prefix}{e.name}/") for e in reversed(entries) if is_folder(e)]


def no_images(folder: Path, left_out: "Counter[str]") -> DataError:
    """The error of a folder without images."""
    looked_for = " ".join(IMAGE_ENDINGS) + describe_left_out(left_out)
    return DataError(f"{str(folder)!r} holds no images at any depth (looked for {looked_for}); check the path")


def scan_classes(folder: Path, left_out: Counter[str]) -> dict[str, list[str]]:
    """Images per class, both sorted; folders whose names differ in their Unicode form alone are one class.

    Other files are counted by their ending.
    """
    classes: dict[str, list[str]] = {}
    for name in sorted(subfolders(folder), key=same_form):
        if _is_of_a_run(folder / name):
            continue
        inner = folder / name
        # The folders around the class, by the way that leads here and by where it really lies.
        around = {*inner.resolve().parents, *(parent.resolve() for parent in inner.absolute().parents)}
        found = sorted((same_form(place), path) for place, path in _walk(inner, left_out, around))
        classes.setdefault(same_form(name), []).extend(path for _, path in found)
    return classes


def _is_of_a_run(folder: Path) -> bool:
    """Whether a training has put its log or checkpoints there, beside the classes; its pictures are no class."""
    return any((folder / name).is_file() for name in _FILES_OF_RUNS)


def describe_runs(folder: Path) -> list[str]:
    """A line for folders of runs among the class folders."""
    names = [name for name in subfolders(folder) if _is_of_a_run(folder / name)]
    if not names:
        return []
    where = "another place: --log_dir DIR --checkpoint_dir DIR"
    return [f"{listing(names)} in {str(folder)!r} is of a run and not read as a class; give runs {where}"]


def check_forms(folder: Path) -> list[str]:
    """A line for class folders that are one class, as their names differ in their Unicode form alone."""
    counts = Counter(map(same_form, subfolders(folder)))
    return [
        f"{str(folder)!r} has {count} folders named {name!r}, which differ in the Unicode form of the letters alone; "
        "they are one class"
        for name, count in counts.items()
        if count > 1
    ]


def require_folder(root: Path) -> None:
    """Require a folder; else raise an error that names the nearest one that exists."""
    try:
        exists, is_there = root.exists(), root.is_dir()
    except OSError as error:
        raise DataError(f"cannot open {str(root)!r}: {error.strerror}; check path and permissions") from None
    if is_there:
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
