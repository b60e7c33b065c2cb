"""Lists of images: a CSV table with a line for each image, its class or classes and maybe its split; or bare paths.

Column ``path`` is relative to the file's folder; ``scene`` and ``window`` (column row width height) in place of it
name a part of a large image, which is read as an image of its own. Column ``label`` holds the one class of an image;
column ``labels`` instead of it holds several with ``|`` (or another separator) between, or none. Column ``split``
holds train, val or test in every line, or is left out. Other columns are not read. Text files with a path a line can
be run over, not trained on.

A list often comes with a data set from elsewhere and could name any file of this machine, so paths that lead out of
its folder, through links too, are refused unless that is allowed.
"""

import csv
import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from sat_vg.backbone_finetuning.data.sources.class_names import (
    SEPARATOR,
    check_cells,
    missing_values,
    names_in,
    same_form,
)
from sat_vg.backbone_finetuning.data.sources.folders import FOLDERS
from sat_vg.backbone_finetuning.data.sources.listed_splits import ListedImage, splits_of
from sat_vg.backbone_finetuning.data.sources.source import ImageList, ImageQuery, Source, describe_images
from sat_vg.backbone_finetuning.data.sources.spatial_split import by_groups
from sat_vg.backbone_finetuning.data.sources.splits import Splits
from sat_vg.backbone_finetuning.data.windows.paths import WindowPath, parse_window
from sat_vg.backbone_finetuning.utils.errors import DataError
from sat_vg.backbone_finetuning.utils.printable import list_lines

TABLE_ENDING = ".csv"
LIST_ENDINGS = (TABLE_ENDING, ".txt")
_MAX_LIST_BYTES = 2**30
_SPLIT_COLUMNS = frozenset(
    {"split", "splits", "set", "dataset", "subset", "partition", "fold", "phase", "usage", "is_train", "is_test"}
)

_Entries = Iterator[tuple[int, str, dict[str, str]]]  # line, path and cells


class Row(NamedTuple):
    """An image of a list."""

    line: int  # its number; the last one of a row that goes over several
    given: str  # the path as it is written
    path: str  # the file to open: the list's folder and what is written
    cells: Mapping[str, str]  # the text of each other column that was asked for and is there


def _read(query: ImageQuery, columns: Sequence[str], hint: str = "") -> tuple[tuple[str, ...], list[Row]]:
    """All names of a list's first line, of a text file ``path`` alone; and its images, in order, none opened.

    Args:
        query: whose path is a ``.csv`` file with a line of column names, or a text file.
        columns: which columns of a table to read besides ``path``, if they are there; text in them is stripped.
        hint: what else can be done about an empty label, for the message; begins with its punctuation.

    Raises:
        DataError: it cannot be read, names no image or what it may not, or a cell is empty.
    """
    path = query.place
    if not path.is_file() or path.stat().st_size > _MAX_LIST_BYTES:
        raise DataError(f"{str(path)!r} is no file of up to {_MAX_LIST_BYTES / 2**30:g} GiB: give a list of paths")
    within, folders = path.parent.resolve(), dict[Path, Path]()
    rows: list[Row] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header: tuple[str, ...] = ("path",)
            entries: _Entries = ((n, line.rstrip("\r\n"), {}) for n, line in enumerate(file, 1) if line.strip())
            if path.suffix.lower() == TABLE_ENDING:
                header, entries = _table(path, file, columns, hint)
            for line, given, found in entries:
                cells = {name: found[name] for name in columns if name in found}
                if "\0" in "".join((given, *cells.values())):
                    raise DataError(f"{str(path)!r}, line {line}: holds a NUL character; write the list anew")
                image = path.parent / given
                if not query.allow_outside and not _real(image, folders).is_relative_to(within):
                    raise DataError(
                        f"{str(path)!r}, line {line}: {given!r} leads out of the list's folder. If you trust the "
                        f"list, add {query.outside_flag}"
                    )
                whole = str(image) if "path" in header else _window_of(path, line, str(image), found["window"])
                rows.append(Row(line, given, whole, cells))
    except (OSError, UnicodeError, csv.Error, RuntimeError) as error:  # RuntimeError: links that lead to each other
        raise DataError(f"the list {str(path)!r} cannot be read ({error}); it must be text in UTF-8") from error
    if not rows:
        raise DataError(f"the list {str(path)!r} names no image; write a path in every line")
    return header, rows


def _window_of(path: Path, line: int, image: str, window: str) -> WindowPath:
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


def csv_rows(path: Path, file: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
    """The number of the last line and the cells of each row of a table; empty ones have none.

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


def _table(path: Path, file: Iterator[str], columns: Sequence[str], hint: str) -> tuple[tuple[str, ...], _Entries]:
    """The column names, and line number, path and cells of each row."""
    lines = csv_rows(path, file)
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


class Tables(Source):
    """The source of images that are listed in a file."""

    def takes(self, query: ImageQuery) -> bool:
        """Whether the path is meant as that of a list and not of a folder."""
        return query.path is not None and query.place.suffix.lower() in LIST_ENDINGS and not query.place.is_dir()

    def load_splits(self, query: ImageQuery) -> Splits:
        """Images of a table; val, where it gives none, does not depend on the order of the lines.

        A label is the place of its class among train's, sorted, or in ``label_sets`` with a column ``labels``.

        Raises:
            DataError: the table cannot be read, a column or cell is missing or wrong, images are missing or there
                twice, train has fewer than two classes, or val or test has a class that train lacks.
        """
        path, separator = query.place, query.label_separator
        if not path.exists():
            raise DataError(f"there is no file {str(path)!r}; check the path")
        if path.suffix.lower() != TABLE_ENDING:
            raise DataError(
                f"{query.path!r} is a list of paths, without classes; give a table (.csv) with the columns path and "
                "label, or the folder of the class folders"
            )
        grouped = () if query.group_column is None else (query.group_column,)
        columns, rows = _read(query, ("label", "labels", "split", *grouped))
        if query.group_column is not None and query.group_column not in columns:
            known = ", ".join(map(repr, columns))
            raise DataError(f"{str(path)!r} has no column {query.group_column!r} (group_column); there are {known}")
        is_multi_label = _has_label_sets(path, columns)
        parts = _by_part(path, rows, query)
        _require_once(path, rows)
        _require_files(path, rows)
        paths = [row.path for row in rows]
        if any(Path(each).is_absolute() for each in paths):  # all alike, so that they have a common folder
            paths = list(map(_absolute, paths))
        listed = {
            part: [
                ListedImage(paths[index], _classes_of(path, rows[index], separator), f"line {rows[index].line}")
                for index in indices
            ]
            for part, indices in parts.items()
        }
        tells_split = "split" in columns
        drawn = f", split by seed {query.seed}"
        if len(parts) > 1 or tells_split:
            share = f"{100 * query.val_fraction:g}% of {query.train_split!r} by seed {query.seed}"
            drawn = f", no line says {query.val_split!r}, so val is {share}"
        splits = splits_of(listed, f"table {str(path)!r}", query, drawn, is_multi_label=is_multi_label)
        shared = []
        if query.group_column is not None:
            groups = dict(zip(paths, _groups_of(path, rows, query.group_column), strict=True))
            splits = by_groups(splits, groups, query)
            shared = _describe_shared_groups(splits, groups)
        column = "labels" if is_multi_label else "label"
        doubts = check_cells([row.cells[column] for row in rows], separator, column)
        doubts += missing_values(splits.class_names) + shared
        seeming = [name for name in columns if name.lower().strip() in _SPLIT_COLUMNS]
        if seeming and not tells_split:
            doubts.append(
                f"the column {seeming[0]!r} is not read; if it says which images are train, val and test, call it "
                "split, with these words in it"
            )
        return replace(splits, notes=(*splits.notes, *(f"table {str(path)!r}: {doubt}" for doubt in doubts)))

    def list_images(self, query: ImageQuery) -> ImageList:
        """Images of a text file are not labelled, nor those of a table without a column of labels."""
        if not query.place.exists():
            return FOLDERS.list_images(query)  # a glob such as *.csv, or a name that is not there
        rows = _read(query, ("label", "labels"), _NO_LABELS)[1]
        labels = tuple(_label_of(row.cells, query.label_separator) for row in rows if row.cells) or None
        how = f" (by {query.place.name})" if labels else ""
        return ImageList(tuple(row.path for row in rows), labels, describe_images(labels, len(rows), how))


TABLES = Tables()
_NO_LABELS = "; without the column label no image needs one"


def _label_of(cells: Mapping[str, str], separator: str) -> str:
    """The class of an image, or its classes with commas between."""
    if "label" in cells:
        return same_form(cells["label"])
    return ", ".join(sorted(set(map(same_form, names_in(cells["labels"], separator))) - {""})) or "(none)"


def _has_label_sets(path: Path, columns: Sequence[str]) -> bool:
    """Whether an image can have several classes or none."""
    there = [name for name in ("label", "labels") if name in columns]
    if len(there) == 1:
        return there[0] == "labels"
    if there:
        raise DataError(f"{str(path)!r} has a column 'label' and a column 'labels'; keep the one that is meant")
    near = difflib.get_close_matches("label", [name.lower() for name in columns], n=1)
    hint = " (case counts)" if near and near[0] in ("label", "labels") else ""
    raise DataError(
        f"{str(path)!r} has no column 'label'{hint}; its first line holds {', '.join(map(repr, columns))}. Add "
        f"the column label with one class for each image, or labels with several ('a{SEPARATOR}b') or none"
    )


def _classes_of(path: Path, row: Row, separator: str) -> tuple[str, ...]:
    """The classes of an image, by name."""
    if "label" in row.cells:
        return (row.cells["label"],)
    classes = names_in(row.cells["labels"], separator)
    if not all(classes):
        raise DataError(
            f"{str(path)!r}, line {row.line}: labels = {row.cells['labels']!r} has no name before, between or after "
            f"{separator!r}; write it in, or remove the {separator!r}"
        )
    return classes


def _groups_of(path: Path, rows: Sequence[Row], column: str) -> list[str]:
    """The group of each image, by name."""
    for row in rows:
        if not row.cells[column]:
            raise DataError(
                f"{str(path)!r}, line {row.line}: has no {column} (group_column). Fill it in, or remove the line"
            )
    return [row.cells[column] for row in rows]


def _describe_shared_groups(splits: Splits, groups: Mapping[str, str]) -> list[str]:
    """A line where test, which the table gives, has groups of train or val."""
    of_test = {groups[path] for path in (splits.test.paths if splits.test else ())}
    shared = sorted(of_test.intersection(groups[path] for split in splits.parts[:2] for path in split.paths))
    if not shared:
        return []
    verb = "is" if len(shared) == 1 else "are"
    return [
        f"{len(shared)} of the groups of test {verb} in train or val, too, such as {shared[0]!r}: results on test "
        "flatter the model"
    ]


def _by_part(path: Path, rows: Sequence[Row], query: ImageQuery) -> dict[str, list[int]]:
    """Indices of the rows of train, val and test; all are train's where no line says anything."""
    given = [row.cells.get("split", "") for row in rows]
    if not any(given):
        return {"train": list(range(len(rows)))}
    part_of = {"test": "test", query.val_split: "val", query.train_split: "train"}  # val may be called test
    parts: dict[str, list[int]] = {}
    for index, (row, split) in enumerate(zip(rows, given, strict=True)):
        if not split:
            raise DataError(
                f"{str(path)!r}, line {row.line}: has no split, and other lines have one. Fill it in, or remove the "
                "column split for a split by seed"
            )
        if split not in part_of:
            known = ", ".join(reversed(part_of))
            raise DataError(
                f"{str(path)!r}, line {row.line}: there is no split {split!r}, only {known}; write one of these, or "
                "name yours with --train_split and --val_split"
            )
        parts.setdefault(part_of[split], []).append(index)
    if "train" not in parts:
        raise DataError(
            f"{str(path)!r} has no line with the split {query.train_split!r}; there is nothing to train on"
        )
    return parts


def _require_once(path: Path, rows: Sequence[Row]) -> None:
    """Refuse an image that is listed twice."""
    lines: dict[str, int] = {}
    for row in rows:
        first = lines.setdefault(os.path.normpath(row.path), row.line)
        if first != row.line:
            raise DataError(
                f"{str(path)!r}, line {row.line}: {row.given!r} is in line {first} already; keep one of them (for "
                f"several classes use the column labels, with {SEPARATOR!r} between)"
            )


def _require_files(path: Path, rows: Sequence[Row]) -> None:
    """Refuse images that are not there, all at once."""
    files = {row.path: row.path.scene if isinstance(row.path, WindowPath) else row.path for row in rows}
    missing = [row for row in rows if not os.path.isfile(files[row.path])]  # noqa: PTH113 - Path raises at long names
    if missing:
        shown = list_lines([f"line {row.line}: {row.given!r}" for row in missing])
        verb = "is" if len(missing) == 1 else "are"
        slashes = "; between folders write / in place of \\" if any("\\" in row.given for row in missing) else ""
        raise DataError(
            f"{len(missing)} of the {len(rows)} images of {str(path)!r} {verb} not there:"
            f"\n{shown}\nPaths are relative to the table's folder, {str(path.parent.absolute())!r}; mend or "
            f"remove the lines{slashes}"
        )


def _absolute(path: str) -> str:
    if isinstance(path, WindowPath):
        return WindowPath(str(Path(path.scene).absolute()), path.window)
    return str(Path(path).absolute())
