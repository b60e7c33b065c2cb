"""Rows of a list of images: text with a path a line, or a CSV table with a column ``path`` and maybe others.

A table with the columns ``scene`` and ``window`` (column row width height) in place of ``path`` lists windows of
scenes, which are read as images of their own.

Paths are relative to the file's own folder. A list often comes with a data set from elsewhere and could name any file
of this machine, so paths that lead out of its folder, through links too, are refused unless that is allowed.
"""

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from sat_vg.backbone_finetuning.data.windows.paths import WindowPath, parse_window
from sat_vg.backbone_finetuning.utils.errors import DataError

TABLE_ENDING = ".csv"
LIST_ENDINGS = (TABLE_ENDING, ".txt")
_MAX_LIST_BYTES = 2**30


class Row(NamedTuple):
    """An image of a list."""

    line: int  # its number; the last one of a row that goes over several
    given: str  # the path as it is written
    path: str  # the file to open: the list's folder and what is written
    cells: Mapping[str, str]  # the text of each other column that was asked for and is there


class ImageTable(NamedTuple):
    """What a list holds."""

    columns: tuple[str, ...]  # all names of its first line; of a text file ``path`` alone
    rows: list[Row]  # its images, in order; one or more


def read_image_table(
    path: Path, columns: Sequence[str] = (), refuse_outside: str | None = None, hint: str = ""
) -> ImageTable:
    """Read a list of images; none of them is opened.

    Args:
        path: a ``.csv`` file with a line of column names, or a text file.
        columns: which columns of a table to read besides ``path``, if they are there; text in them is stripped.
        refuse_outside: the flag that allows paths that lead out of the list's folder, for the message; None: they
            are allowed.
        hint: what else can be done about an empty label, for the message; begins with its punctuation.

    Raises:
        DataError: it cannot be read, names no image or what it may not, or a cell is empty.
    """
    if not path.is_file() or path.stat().st_size > _MAX_LIST_BYTES:
        raise DataError(f"{str(path)!r} is no file of up to {_MAX_LIST_BYTES / 2**30:g} GiB: give a list of paths")
    within, folders = path.parent.resolve(), dict[Path, Path]()
    rows: list[Row] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header, entries = (
                _table(path, file, columns, hint) if path.suffix.lower() == TABLE_ENDING else _text(file)
            )
            for line, given, found in entries:
                cells = {name: found[name] for name in columns if name in found}
                window = found["window"] if "path" not in header else None
                if "\0" in "".join((given, *cells.values())):
                    raise DataError(f"{str(path)!r}, line {line}: holds a NUL character; write the list anew")
                image = path.parent / given
                if refuse_outside is not None and not _real(image, folders).is_relative_to(within):
                    raise DataError(
                        f"{str(path)!r}, line {line}: {given!r} leads out of the list's folder. If you trust the "
                        f"list, add {refuse_outside}"
                    )
                rows.append(Row(line, given, _in_scene(path, line, str(image), window), cells))
    except (OSError, UnicodeError, csv.Error, RuntimeError) as error:  # RuntimeError: links that lead to each other
        raise DataError(f"the list {str(path)!r} cannot be read ({error}); it must be text in UTF-8") from error
    if not rows:
        raise DataError(f"the list {str(path)!r} names no image; write a path in every line")
    return ImageTable(header, rows)


def _in_scene(path: Path, line: int, image: str, window: str | None) -> str:
    """The path of a window of a scene; of the image itself where there is no window."""
    if window is None:
        return image
    try:
        return WindowPath(image, parse_window(window))
    except ValueError as error:
        raise DataError(
            f"{str(path)!r}, line {line}: window = {window!r} is no window ({error}); write column, row, width and "
            "height in pixels with spaces between, such as 0 256 64 64"
        ) from None


def _real(image: Path, folders: dict[Path, Path]) -> Path:
    """The resolved path of a file; each folder is resolved once, which in long lists is most of the work."""
    if image.name == ".." or os.path.islink(image):  # noqa: PTH114 - Path raises at long names
        return image.resolve()
    if image.parent not in folders:
        folders[image.parent] = image.parent.resolve()
    return folders[image.parent] / image.name


_Entries = Iterator[tuple[int, str, dict[str, str]]]


def _rows(path: Path, file: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
    """The number of the last line and the cells of each row.

    Raises:
        DataError: names the line where a row begins that cannot be told.
    """
    reader = csv.reader(file, strict=True, skipinitialspace=True)
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{str(path)!r}, line {line}, cannot be read ({error}). Between double quotes a cell goes on, over "
                "lines too, until the next one: close or remove them"
            ) from None
        yield reader.line_num, row


def _text(file: Iterator[str]) -> tuple[tuple[str, ...], _Entries]:
    """Line number and path of each line that is not blank."""

    def entries() -> _Entries:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line.rstrip("\r\n"), {}

    return ("path",), entries()


def _table(path: Path, file: Iterator[str], columns: Sequence[str], hint: str) -> tuple[tuple[str, ...], _Entries]:
    """The column names, and line number, path and cells of each row."""
    lines = _rows(path, file)
    header = tuple(name.strip() for name in next(lines, (0, []))[1])
    places = ("path",) if "path" in header else ("scene", "window")
    if not set(places) <= set(header):
        raise DataError(
            f"{str(path)!r} has no column 'path'; its first line holds {', '.join(map(repr, header)) or 'nothing'}. "
            "Write path,label (or path alone) above the rows, with commas between; of windows scene,window,label"
        )
    wanted = [*places, *(name for name in columns if name in header)]
    twice = [name for name in wanted if header.count(name) > 1]
    if twice:
        raise DataError(f"{str(path)!r} has the column {twice[0]!r} more than once; keep one of them")
    column_of = {name: header.index(name) for name in wanted}

    def entries() -> _Entries:
        for line, row in lines:
            if not row:
                continue
            if any(cell.strip() for cell in row[len(header) :]):
                raise DataError(
                    f"{str(path)!r}, line {line}: has {len(row)} cells, and the first line names "
                    f"{len(header)}. Put cells that hold a comma between double quotes"
                )
            cells = {name: row[place].strip() if place < len(row) else "" for name, place in column_of.items()}
            empty = [name for name, cell in cells.items() if not cell and name in (*places, "label")]
            if empty:
                raise DataError(
                    f"{str(path)!r}, line {line}: has no {' and '.join(empty)}. Fill it in, or remove the line{hint}"
                )
            yield line, cells[places[0]], cells

    return header, entries()
