"""What folders hold: the names that count, and which of them are images."""

import os
from collections.abc import Sequence
from pathlib import Path

from sat_vg.backbone_finetuning.utils.errors import DataError

IMAGE_ENDINGS = (".jpg", ".jpeg", ".jfif", ".png", ".tif", ".tiff", ".webp", ".bmp", ".jp2")
_LISTED = 10  # names shown in a message


def entries_of(folder: Path) -> list["os.DirEntry[str]"]:
    """What a folder holds, sorted by name, without hidden names."""
    try:
        with os.scandir(folder) as entries:
            seen = [e for e in entries if not e.name.startswith(".") and e.name != "__MACOSX"]
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
