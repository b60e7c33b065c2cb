"""Readers of grounding data: DIOR-RSVG folders, lines, JSON, CSV and the .pth lists of TransVG.

A reader makes rows of a file; one function makes records of rows.
"""

import io
import math
import os
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from sat_vg.backbone_finetuning.data.sources.tables import csv_rows
from sat_vg.backbone_finetuning.utils.errors import DataError, UserError
from sat_vg.backbone_finetuning.utils.json_reading import UnsoundJSONError, parse_json
from sat_vg.backbone_finetuning.utils.printable import counted
from sat_vg.backbone_finetuning.utils.regular_files import read_bounded
from sat_vg.backbone_finetuning.utils.tensor_files import load_tensors
from sat_vg.grounding.config import BOX_FORMATS, SPLITS, BoxFormat
from sat_vg.grounding.words import tokens_of

Box = tuple[float, float, float, float]

_SIDES = ("x1", "y1", "x2", "y2")
_IMAGE_FOLDERS = ("JPEGImages", "images", "Images", "image", ".")
_LAYOUTS = (
    "a DIOR-RSVG folder (Annotations/, JPEGImages/, train.txt …), a folder with train.json, .jsonl, .csv, .txt or "
    ".pth (and val, test), or one such file"
)


@dataclass(frozen=True)
class Record:
    """A phrase about an image, and the box of what it names: four numbers in ``box_format``, pixels or fractions."""

    image: str
    phrase: str
    box: Box
    source: str  # file and place where it stands, such as "train.csv, line 7"
    key: str | None = None  # its id, if it has one
    box_format: BoxFormat | None = "xyxy"  # None: the numbers have to tell what they are


class Listing(NamedTuple):
    """By split (``""`` where unknown): the records, a line for each row that is none, and unread files."""

    splits: dict[str, list[Record]]
    problems: dict[str, list[str]]
    unread: dict[str, UserError]  # of a split whose file cannot be read; none of its rows are in the other two

    def has(self, split: str) -> bool:
        """Whether anything in the data, usable or not, is of a split."""
        return any(split in part for part in self)


class _Unusable(ValueError):
    """What is wrong with a row or a file, to be told behind its place."""


class _Row(NamedTuple):
    source: str
    content: Any  # a mapping with image, phrase, box and maybe id, split and box_format; or why it is none
    split: str = ""  # what the file says of it
    box_format: BoxFormat | None = None  # of its layout, where neither the row nor the settings say it


_Rows = Iterator[_Row]


def require_data(path: Path) -> None:
    """Raise DataError where there is no such folder or file."""
    if not os.path.exists(path):  # noqa: PTH110 - Path raises at long names
        raise _no_data(path, "there is no such folder or file")


def _no_data(path: Path, why: str) -> DataError:
    return DataError(f"data = {str(path)!r}: {why}; it may be {_LAYOUTS}")


def read_listing(path: Path, box_format: BoxFormat | None = None) -> Listing:
    """Read a data set: a DIOR-RSVG folder, a folder with one file per split, or one file.

    ``box_format`` is that of boxes whose file does not say it; None: their numbers have to tell (see ``data``).
    DataError: there is no such data set, or a file cannot be read that may hold every split, or none can.
    """
    require_data(path)
    folder = path if path.is_dir() else path.parent
    if (path / "Annotations").is_dir():
        parts = _voc_parts(path)
    else:
        files = _files_of(path) if path.is_dir() else {"": path}
        parts = {split: partial(_rows_of, file) for split, file in files.items()}
    listing = Listing(defaultdict(list), defaultdict(list), {})
    for part, read in parts.items():
        try:
            rows = read()
        except UserError as error:
            if not part:
                raise
            listing.unread[part] = error
            continue
        for row in rows:
            said = row.content.get("split") if isinstance(row.content, Mapping) else None
            split = str("" if said is None else said).strip().lower() or row.split or part
            try:
                record = _record_of(row, split, folder, box_format)
            except _Unusable as problem:
                listing.problems[split].append(f"{row.source}: {problem}")
            else:
                listing.splits[split].append(record)
    if listing.unread and not listing.splits and not listing.problems:
        raise next(iter(listing.unread.values()))
    return listing


def split_records(listing: Listing, val_fraction: float, seed: int) -> tuple[dict[str, list[Record]], list[str]]:
    """Records by split, and what was decided: without ``val``, images with all of their records are drawn by seed."""
    splits = {name: list(records) for name, records in listing.splits.items() if records}
    notes: list[str] = []
    if "" in splits:
        splits["train"] = splits.pop("") + splits.get("train", [])
    if "train" in splits and not listing.has("val"):
        images = sorted({record.image for record in splits["train"]})
        random.Random(seed).shuffle(images)
        held = set(images[: max(1, round(val_fraction * len(images)))]) if len(images) > 1 else set()
        splits["val"] = [record for record in splits["train"] if record.image in held]
        splits["train"] = [record for record in splits["train"] if record.image not in held]
        notes.append(f"val: {len(held)} of {len(images)} training images, drawn by seed {seed}")
    keys = {name: {record.key for record in records if record.key} for name, records in splits.items()}
    for one, other in combinations(keys, 2):
        if shared := sorted(keys[one] & keys[other]):
            ids = counted(len(shared), "id is", "ids are")
            notes.append(f"{ids} in {one} and in {other}, such as {shared[0]!r}")
    return {name: records for name, records in splits.items() if records}, notes


def _files_of(folder: Path) -> dict[str, Path]:
    """The annotation files of a folder by split."""
    files: dict[str, Path] = {}
    for split in SPLITS:
        found = [file for ending in _ENDINGS if (file := folder / f"{split}{ending}").is_file()]
        if len(found) > 1:
            both = f"{found[0].name} and {found[1].name}"
            raise DataError(f"data = {str(folder)!r}: {both} both hold {split}; remove one")
        files.update((file.stem, file) for file in found)
    if not files:
        raise _no_data(folder, "holds no annotations that are known here")
    return files


def _record_of(row: _Row, split: str, folder: Path, box_format: BoxFormat | None) -> Record:
    """The record of a row that is of ``split``. Raises _Unusable where it is none."""
    content = row.content
    if isinstance(content, _Unusable):
        raise content
    if not isinstance(content, Mapping):
        raise _Unusable(f"{content!r} is no object with image, phrase and box")
    for name in ("image", "phrase", "box"):
        if content.get(name) is None:
            raise _Unusable(f"has no {name}")
    image, phrase, box = _image_of(content["image"], folder), content["phrase"], _numbers_of(content["box"])
    if not _is_text(phrase):
        raise _Unusable(f"the phrase is {phrase!r}, no text")
    if not tokens_of(phrase):
        raise _Unusable(f"the phrase {phrase!r} has no words" if phrase.strip() else "the phrase is empty")
    if box is None:
        raise _Unusable(f"the box is {content['box']!r}, but has to be four numbers")
    said = content.get("box_format")
    said = (box_format or row.box_format) if said in (None, "") else said
    if said not in (None, *BOX_FORMATS):
        raise _Unusable(f"box_format is {said!r}, but may be {', '.join(BOX_FORMATS)}")
    if split not in ("", *SPLITS):
        raise _Unusable(f"split is {split!r}, but may be {', '.join(SPLITS)}")
    key = None if content.get("id") is None else str(content["id"])
    return Record(image, " ".join(phrase.split()), box, row.source, key, said)


def _is_text(value: object) -> bool:
    """Whether a value is a text that can be written into files; JSON may hold halves of characters."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def _numbers_of(box: Any) -> Box | None:
    """Four numbers, as text or in a sequence, array or tensor; None where they are none."""
    if isinstance(box, str):
        box = re.findall(r"[^\s,;\[\]()]+", box)
    box = box.tolist() if hasattr(box, "tolist") else box
    if not isinstance(box, Sequence) or len(box) != 4 or any(isinstance(side, bool) for side in box):
        return None
    try:
        a, b, c, d = map(float, box)
    except (TypeError, ValueError, OverflowError):
        return None
    return (a, b, c, d) if math.isfinite(a + b + c + d) else None


def _image_of(name: Any, root: Path) -> str:
    """The path of an image, beside its annotations or in a folder of images; it may not lead out of ``root``."""
    if not _is_text(name) or not name.strip() or "\0" in name:
        raise _Unusable(f"the image is {name!r}, but has to be a file name")
    path = Path(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise _Unusable(f"the image {name!r} leads out of {str(root)!r}; put it there, and name it from there")
    places = [str(root / folder / path) for folder in _IMAGE_FOLDERS]
    return next(filter(os.path.isfile, places), str(root / path))


def _parsed(file: Path, parse: Callable[[Path, str], Iterable[_Row]], most_bytes: int = 2**30) -> list[_Row]:
    """The rows that a parser makes of a file's text; what is wrong with the file becomes an error that names it."""
    try:
        return list(parse(file, read_bounded(file, most_bytes).decode("utf-8-sig")))
    except UnicodeDecodeError as error:
        reason = f"is not UTF-8 text (byte {error.start}); save it as UTF-8"
    except OSError as error:
        reason = f"cannot be read: {error.strerror or error}"
    except (UnsoundJSONError, ElementTree.ParseError) as error:
        reason = f"is not valid {file.suffix[1:].upper()}: {error}"
    except _Unusable as error:
        reason = str(error)
    raise DataError(f"{str(file)!r} {reason}")


def _lines_of(text: str) -> Iterator[tuple[int, str]]:
    """The lines that are not empty, with their numbers; U+2028 and its like end none."""
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        if line.strip():
            yield number, line


def _voc_parts(root: Path) -> dict[str, Callable[[], list[_Row]]]:
    """DIOR-RSVG: VOC XML files, whose objects are numbered over all files in the order of their sorted names.

    Behind a file that cannot be read no number is known; only splits with such numbers cannot be read.
    """
    # Names that begin with a dot are files of macOS and editors.
    found = (root / "Annotations").glob("[!.]*")
    files = sorted((file for file in found if file.suffix.lower() == ".xml"), key=lambda file: file.name)
    if not files:
        raise DataError(f"{str(root / 'Annotations')!r} holds no .xml file")
    indices = [index for split in SPLITS if (index := root / f"{split}.txt").is_file()]
    objects, unread = list[_Row](), None
    try:
        for file in files:
            objects += _parsed(file, _xml_rows, most_bytes=2**22)
    except DataError as error:
        if not indices:
            raise
        unread = error
    if not indices:
        return {"": lambda: objects}
    return {index.stem: partial(_parsed, index, partial(_index_rows, objects, unread)) for index in indices}


def _index_rows(objects: Sequence[_Row], unread: DataError | None, index: Path, text: str) -> _Rows:
    """The objects whose numbers a file lists; ``unread``: why there are none behind them."""
    first: dict[int, int] = {}
    for number, entry in enumerate(text.split(), start=1):
        source = f"{index.name}, entry {number}"
        if not (entry.isdecimal() and len(entry) <= 12 and int(entry) < len(objects)):
            if unread is not None:
                raise unread
            yield _Row(source, _Unusable(f"{entry!r} is no index of the {len(objects)} objects"))
        elif first.setdefault(int(entry), number) < number:
            yield _Row(source, _Unusable(f"object {entry} is that of entry {first[int(entry)]} already"))
        else:
            yield objects[int(entry)]


def _xml_rows(file: Path, text: str) -> _Rows:
    if "<!DOCTYPE" in text or "<!ENTITY" in text:  # entities can expand without bound, and VOC has none
        raise _Unusable("declares XML entities, which are refused; remove its <!DOCTYPE …>")
    tree = ElementTree.fromstring(text)
    image = Path((tree.findtext("filename") or f"{file.stem}.jpg").strip().replace("\\", "/")).name
    for number, entry in enumerate(tree.iter("object"), start=1):
        source, phrases = f"{file.name}, object {number}", [one.text or "" for one in entry.findall("description")]
        box = [entry.findtext(f"bndbox/{side}", "").strip() for side in ("xmin", "ymin", "xmax", "ymax")]
        row = {"image": image, "phrase": phrases[0] if phrases else None, "box": box, "box_format": "xyxy"}
        several = _Unusable(f"has {len(phrases)} descriptions; keep the one that is its phrase")
        yield _Row(source, several if len(phrases) > 1 else row | {"id": f"{file.stem}/{number}"})


def _json_rows(file: Path, text: str) -> _Rows:
    """A JSON list of objects, or such lists by split."""
    entries = parse_json(text)
    if isinstance(entries, list):
        entries = {"": entries}
    elif not isinstance(entries, Mapping) or not set(entries) <= set(SPLITS):
        raise _Unusable("has to hold a list of objects with image, phrase and box")
    number = 0
    for split, part in entries.items():
        for entry in part if isinstance(part, list) else [part]:
            number += 1
            yield _Row(f"{file.name}, entry {number}", entry, split)


def _json_line_rows(file: Path, text: str) -> _Rows:
    for number, line in _lines_of(text):
        try:
            entry = parse_json(line)
        except UnsoundJSONError as error:
            raise UnsoundJSONError(f"line {number}: {error}") from None
        yield _Row(f"{file.name}, line {number}", entry)


def _csv_rows(file: Path, text: str) -> _Rows:
    """A table with the columns ``image,phrase`` and ``box`` or ``x1,y1,x2,y2``."""
    rows = csv_rows(file, io.StringIO(text, newline=None))
    columns = [column.strip() for column in next(rows, (0, []))[1]]
    if not {"image", "phrase"} <= set(columns) or not ("box" in columns or set(_SIDES) <= set(columns)):
        shown = ", ".join(columns) or "(none)"
        raise _Unusable(f"has the columns {shown}; it needs image, phrase, and box or x1, y1, x2, y2")
    for column in columns:
        if column and columns.count(column) > 1:
            raise _Unusable(f"names the column {column!r} twice; remove one")
    for line, cells in rows:
        source, row = f"{file.name}, line {line}", dict(zip(columns, cells, strict=False))
        if any(cell.strip() for cell in cells[len(columns) :]):
            why = f"has more than {len(columns)} cells; put a cell with commas between double quotes"
            yield _Row(source, _Unusable(why))
        elif cells and "box" in columns:
            yield _Row(source, row)
        elif cells:
            box = [row.get(side) for side in _SIDES]
            yield _Row(source, row | {"box": box}, box_format="xyxy")


def _rsvg_rows(file: Path, text: str) -> _Rows:
    """RSVG-HR: ``image,x1,y1,x2,y2,phrase`` a line; the phrase may have commas."""
    for number, line in _lines_of(text):
        image, *box, phrase = [*(part.strip() for part in line.split(",", 5)), "", ""][:6]
        yield _Row(f"{file.name}, line {number}", {"image": image, "box": box, "phrase": phrase}, box_format="xyxy")


_PARSERS = {".json": _json_rows, ".jsonl": _json_line_rows, ".csv": _csv_rows, ".txt": _rsvg_rows}
_ENDINGS = (*_PARSERS, ".pth")


def _rows_of(file: Path) -> list[_Row]:
    ending = file.suffix.lower()
    if ending not in _ENDINGS:
        raise _no_data(file, f"a file that ends in {', '.join(_ENDINGS)} is needed")
    if ending != ".pth":
        return _parsed(file, _PARSERS[ending])
    # TransVG and the first SatVG: a list of (image, _, box, phrase, _), read without running code in it.
    entries = load_tensors(file)
    if not isinstance(entries, (list, tuple)):
        raise DataError(f"{str(file)!r} has to hold a list of (image, _, box, phrase, _)")
    rows = []
    for number, entry in enumerate(entries, start=1):
        is_row = isinstance(entry, (list, tuple)) and len(entry) >= 4
        content = {"image": entry[0], "box": entry[2], "phrase": entry[3]} if is_row else {}
        rows.append(_Row(f"{file.name}, entry {number}", content))
    return rows
