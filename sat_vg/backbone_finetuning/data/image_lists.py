"""Images that a model is run over without training: a folder, a list in a file, a glob, or a single image.

A list is a text file with a path a line (``.txt``), or a table (``.csv``) with a column ``path`` and, if the images
are labelled, a column ``label``. Its paths are relative to its own folder. A list often comes with a data set from
elsewhere and could name any file of this machine, so paths that lead out of its folder, through links too, are
refused unless that is allowed.
"""

import csv
import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sat_vg.backbone_finetuning.data.sources import IMAGE_ENDINGS
from sat_vg.backbone_finetuning.utils.errors import DataError
from sat_vg.backbone_finetuning.utils.home_paths import expand_home

LIST_ENDINGS = (".csv", ".txt")
_SPLITS = frozenset({"train", "val", "test"})
_MAX_LIST_BYTES = 2**30


@dataclass(frozen=True)
class ImageList:
    """Images in order, with what is known of their classes.

    Attributes:
        paths: files to open: the folder as it was given, and what follows.
        labels: the class of each image by name; None: they are not labelled.
        description: one line for the terminal.
    """

    paths: tuple[str, ...]
    labels: tuple[str, ...] | None
    description: str

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, sorted; none where the images are not labelled."""
        return tuple(sorted(set(self.labels or ())))


def list_images(source: str, allow_outside: bool = False) -> ImageList:
    """The images that a folder, a list, a glob or a path of one image stands for.

    Those of class folders are labelled by them: ``DIR/CLASS/…``, or ``DIR/train/CLASS/…`` with ``val`` or ``test``.

    Args:
        source: what the user typed.
        allow_outside: a list may name files outside its folder.

    Raises:
        DataError: there is no image, or a list that cannot be read or names what it may not.
    """
    path = expand_home(source)
    if path.is_dir():
        return _of_folder(path)
    if path.suffix.lower() in LIST_ENDINGS and path.exists():
        return _of_list(path, allow_outside)
    found = tuple(images_of(source))
    return ImageList(found, None, f"{_counted(len(found))}, not labelled")


def images_of(source: str) -> list[str]:
    """The images of a folder at any depth or of a glob (``**`` reaches any depth), sorted; of a file itself.

    Raises:
        DataError: there is none.
    """
    path = expand_home(source)
    if path.is_dir():
        return _images_below(path)
    if path.exists():
        return [str(path)]
    if not glob.has_magic(source):
        raise DataError(f"there is no file or folder {source!r}; check the path")
    matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 - of patterns that begin anywhere
    found = [match for match in matches if _is_image(match) and not Path(match).is_dir()]
    if not found:
        what = "only names that are no image's" if matches else "nothing"
        raise DataError(f"{source!r} matches {what} (endings looked for: {' '.join(IMAGE_ENDINGS)})")
    return found


def _of_folder(folder: Path) -> ImageList:
    paths = _images_below(folder)
    parts = [Path(path).relative_to(folder).parts for path in paths]
    depth = 1 if all(len(each) > 2 and each[0] in _SPLITS for each in parts) else 0
    if not all(len(each) > depth + 1 for each in parts):
        return ImageList(tuple(paths), None, f"{_counted(len(paths))}, not labelled: some lie in no class folder")
    labels = tuple(each[depth] for each in parts)
    return ImageList(tuple(paths), labels, _labelled(labels, "by folder"))


def _images_below(folder: Path) -> list[str]:
    """Paths of all images at any depth, sorted; links are followed, and each real folder is read once.

    Names that begin with a dot and ``__MACOSX`` are skipped, as in the training.
    """
    found: list[str] = []
    seen: set[Path] = set()
    for place, folders, files in os.walk(folder, followlinks=True, onerror=_cannot_list):
        real = Path(place).resolve()
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        found += [str(Path(place, name)) for name in files if _is_image(name) and not name.startswith(".")]
    if not found:
        looked_for = " ".join(IMAGE_ENDINGS)
        raise DataError(f"{str(folder)!r} holds no images at any depth (looked for {looked_for}); check the path")
    return sorted(found)


def _cannot_list(error: OSError) -> None:
    raise DataError(f"cannot list the folder {error.filename!r}: {error.strerror}; check its permissions") from error


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_ENDINGS)


def _of_list(path: Path, allow_outside: bool) -> ImageList:
    if not path.is_file() or path.stat().st_size > _MAX_LIST_BYTES:
        raise DataError(f"{str(path)!r} is no file of up to {_MAX_LIST_BYTES / 2**30:g} GiB: give a list of paths")
    rows = _table_rows if path.suffix.lower() == ".csv" else _text_rows
    paths: list[str] = []
    labels: list[str] = []
    within = None if allow_outside else path.parent.resolve()
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, given, label in rows(path, file):
                if "\0" in given or "\0" in (label or ""):
                    raise DataError(f"{str(path)!r}, line {number}: holds a NUL character; write the list anew")
                image = path.parent / given
                if within is not None and not image.resolve().is_relative_to(within):
                    raise DataError(
                        f"{str(path)!r}, line {number}: {given!r} leads out of the list's folder. If you trust the "
                        "list, add --allow_outside"
                    )
                paths.append(str(image))
                if label is not None:
                    labels.append(label)
    except (OSError, UnicodeError, csv.Error, RuntimeError) as error:  # RuntimeError: links that lead to each other
        raise DataError(f"the list {str(path)!r} cannot be read ({error}); it must be text in UTF-8") from error
    if not paths:
        raise DataError(f"the list {str(path)!r} names no image; write a path in every line")
    if not labels:
        return ImageList(tuple(paths), None, f"{_counted(len(paths))}, not labelled")
    return ImageList(tuple(paths), tuple(labels), _labelled(labels, f"by {path.name}"))


def _text_rows(path: Path, file: Iterator[str]) -> Iterator[tuple[int, str, None]]:
    """Line number and path of each line that is not blank."""
    for number, line in enumerate(file, 1):
        if line.strip():
            yield number, line.rstrip("\r\n"), None


def _table_rows(path: Path, file: Iterator[str]) -> Iterator[tuple[int, str, str | None]]:
    """Line number, path and, where there is such a column, label of each row."""
    reader = csv.reader(file)
    header = [name.strip() for name in next(reader, [])]
    if "path" not in header:
        raise DataError(
            f"{str(path)!r} has no column 'path'; its first line holds {', '.join(map(repr, header)) or 'nothing'}. "
            "Write path,label (or path alone) above the rows, with commas between"
        )
    wanted = [header.index(name) for name in ("path", "label") if name in header]
    for row in reader:
        if not row:
            continue
        cells = [row[place].strip() if place < len(row) else "" for place in wanted]
        if not all(cells):
            lacking = " and ".join(name for name, cell in zip(("path", "label"), cells, strict=False) if not cell)
            raise DataError(
                f"{str(path)!r}, line {reader.line_num}: has no {lacking}. Fill it in, or remove the line; without "
                "the column label no image needs one"
            )
        yield reader.line_num, cells[0], cells[1] if len(cells) == 2 else None


def _labelled(labels: Sequence[str], how: str) -> str:
    count = len(set(labels))
    return f"{_counted(len(labels))} in {count} {'class' if count == 1 else 'classes'} ({how})"


def _counted(count: int) -> str:
    return f"{count} {'image' if count == 1 else 'images'}"
