"""Files and folders of images: which names count, which files are images, and which are left out by their ending."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath

from sat_vg.backbone_finetuning.utils.errors import DataError

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
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(repr(name) for name in names[:_LISTED]) + more


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
    found: list[str] = []
    seen: set[Path] = set()
    for place, folders, files in os.walk(folder, followlinks=True, onerror=_cannot_list):
        real = Path(place).resolve()
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        for name in files:
            if is_image(name) and not is_hidden(name):
                found.append(str(Path(place, name)))
            elif not is_hidden(name):
                count_left_out(name, left_out)
    if not found:
        raise no_images(folder, left_out)
    return sorted(found)


def _cannot_list(error: OSError) -> None:
    raise DataError(f"cannot list the folder {error.filename!r}: {error.strerror}; check its permissions") from error


def no_images(folder: Path, left_out: "Counter[str]") -> DataError:
    """The error of a folder without images."""
    looked_for = " ".join(IMAGE_ENDINGS) + describe_left_out(left_out)
    return DataError(f"{str(folder)!r} holds no images at any depth (looked for {looked_for}); check the path")
