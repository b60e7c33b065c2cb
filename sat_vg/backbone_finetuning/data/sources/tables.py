"""Tables of images: a CSV file with a line for each image, its class or classes, and maybe its split.

Column ``path`` is relative to the file's folder; ``scene`` and ``window`` in place of it name a part of a large
image. Column ``label`` holds the one class of an image; column ``labels`` instead of it holds several with ``|`` (or
another separator) between, or none. Column ``split`` holds train, val or test in every line, or is left out. Other
columns are not read. Text files with a path a line can be run over, not trained on. ``image_tables`` says what may
not be named.
"""

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sat_vg.backbone_finetuning.data.sources.class_names import (
    SEPARATOR,
    check_cells,
    missing_values,
    names_in,
    same_form,
)
from sat_vg.backbone_finetuning.data.sources.folders import FOLDERS
from sat_vg.backbone_finetuning.data.sources.image_tables import (
    LIST_ENDINGS,
    TABLE_ENDING,
    ImageTable,
    Row,
    read_image_table,
)
from sat_vg.backbone_finetuning.data.sources.listed_splits import ListedImage, splits_of
from sat_vg.backbone_finetuning.data.sources.separated_splits import by_groups
from sat_vg.backbone_finetuning.data.sources.source import ImageList, ImageQuery, Source, describe_images
from sat_vg.backbone_finetuning.data.sources.splits import Splits
from sat_vg.backbone_finetuning.data.windows.paths import WindowPath
from sat_vg.backbone_finetuning.utils.errors import DataError
from sat_vg.backbone_finetuning.utils.printable import list_lines

_SPLIT_COLUMNS = frozenset(
    {"split", "splits", "set", "dataset", "subset", "partition", "fold", "phase", "usage", "is_train", "is_test"}
)


class Tables(Source):
    """The source of images that are listed in a file."""

    def takes(self, query: ImageQuery) -> bool:
        """Whether the path is meant as that of a list and not of a folder."""
        return query.path is not None and query.place.suffix.lower() in LIST_ENDINGS and not query.place.is_dir()

    def load_splits(self, query: ImageQuery) -> Splits:
        """See ``load_table``."""
        if query.place.suffix.lower() != TABLE_ENDING and query.place.exists():
            raise DataError(
                f"{query.path!r} is a list of paths, without classes; give a table (.csv) with the columns path and "
                "label, or the folder of the class folders"
            )
        return load_table(query)

    def list_images(self, query: ImageQuery) -> ImageList:
        """Images of a text file are not labelled, nor those of a table without a column of labels."""
        if not query.place.exists():
            return FOLDERS.list_images(query)  # a glob such as *.csv, or a name that is not there
        refuse_outside = None if query.allow_outside else query.outside_flag
        rows = read_image_table(query.place, ("label", "labels"), refuse_outside, _NO_LABELS).rows
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


def load_table(query: ImageQuery) -> Splits:
    """Images of a table (see the top of this module); val, where it gives none, does not depend on the lines' order.

    Returns:
        The splits; a label is the place of its class among train's, sorted, or in ``label_sets`` with a column
        ``labels``.

    Raises:
        DataError: the table cannot be read, a column or cell is missing or wrong, images are missing or there twice,
            train has fewer than two classes, or val or test has a class that train lacks.
    """
    path, separator = query.place, query.label_separator
    if not path.exists():
        raise DataError(f"there is no file {str(path)!r}; check the path")
    refuse_outside = None if query.allow_outside else query.outside_flag
    grouped = () if query.group_column is None else (query.group_column,)
    table = read_image_table(path, ("label", "labels", "split", *grouped), refuse_outside)
    if query.group_column is not None and query.group_column not in table.columns:
        known = ", ".join(map(repr, table.columns))
        raise DataError(f"{str(path)!r} has no column {query.group_column!r} (group_column); there are {known}")
    is_multi_label = _has_label_sets(path, table)
    parts = _by_part(path, table.rows, query)
    _require_once(path, table.rows)
    _require_files(path, table.rows)
    paths = _alike([row.path for row in table.rows])
    listed = {
        part: [
            ListedImage(
                paths[index], _classes_of(path, table.rows[index], separator), f"line {table.rows[index].line}"
            )
            for index in indices
        ]
        for part, indices in parts.items()
    }
    drawn = f", split by seed {query.seed}"
    if len(parts) > 1 or "split" in table.rows[0].cells:
        share = f"{100 * query.val_fraction:g}% of {query.train_split!r} by seed {query.seed}"
        drawn = f", no line says {query.val_split!r}, so val is {share}"
    splits = splits_of(listed, f"table {str(path)!r}", query, drawn, is_multi_label=is_multi_label)
    if query.group_column is not None:
        groups = [row.cells[query.group_column] for row in table.rows]
        splits = by_groups(splits, dict(zip(paths, groups, strict=True)), query)
    column = "labels" if is_multi_label else "label"
    doubts = check_cells([row.cells[column] for row in table.rows], separator, column)
    doubts += missing_values(splits.class_names) + _unread_splits(table, is_told="split" in table.rows[0].cells)
    return replace(splits, notes=(*splits.notes, *(f"table {str(path)!r}: {doubt}" for doubt in doubts)))


def _unread_splits(table: ImageTable, is_told: bool) -> list[str]:
    """A line where a column that is not read seems to say which images are train, val and test."""
    seeming = [name for name in table.columns if name.lower().strip() in _SPLIT_COLUMNS]
    if is_told or not seeming:
        return []
    return [
        f"the column {seeming[0]!r} is not read; if it says which images are train, val and test, call it split, "
        "with these words in it"
    ]


def _has_label_sets(path: Path, table: ImageTable) -> bool:
    """Whether an image can have several classes or none."""
    there = [name for name in ("label", "labels") if name in table.columns]
    if len(there) == 1:
        return there[0] == "labels"
    if there:
        raise DataError(f"{str(path)!r} has a column 'label' and a column 'labels'; keep the one that is meant")
    near = difflib.get_close_matches("label", [name.lower() for name in table.columns], n=1)
    hint = " (case counts)" if near and near[0] in ("label", "labels") else ""
    raise DataError(
        f"{str(path)!r} has no column 'label'{hint}; its first line holds {', '.join(map(repr, table.columns))}. Add "
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


def _by_part(path: Path, rows: Sequence[Row], query: ImageQuery) -> dict[str, list[int]]:
    """Indices of the rows of train, val and test; all are train's where no line says anything."""
    given = [row.cells.get("split", "") for row in rows]
    if not any(given):
        return {"train": list(range(len(rows)))}
    part_of = {query.train_split: "train", query.val_split: "val", "test": "test"}
    parts: dict[str, list[int]] = {}
    for index, (row, split) in enumerate(zip(rows, given, strict=True)):
        if not split:
            raise DataError(
                f"{str(path)!r}, line {row.line}: has no split, and other lines have one. Fill it in, or remove the "
                "column split for a split by seed"
            )
        if split not in part_of:
            raise DataError(
                f"{str(path)!r}, line {row.line}: there is no split {split!r}, only {', '.join(part_of)}; write one "
                "of these, or name yours with --train_split and --val_split"
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


def _alike(paths: Sequence[str]) -> list[str]:
    """All paths relative or all absolute, so that they have a common folder."""
    if not any(Path(path).is_absolute() for path in paths):
        return list(paths)
    return [_absolute(path) for path in paths]


def _absolute(path: str) -> str:
    if isinstance(path, WindowPath):
        return WindowPath(str(Path(path.scene).absolute()), path.window)
    return str(Path(path).absolute())
