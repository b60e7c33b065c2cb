"""Readers of grounding data: DIOR-RSVG folders, lines, JSON, CSV and the .pth lists of TransVG.

A reader is a generator of rows; one function makes records of them.
"""

import io
import math
import os
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
    """A phrase about an image, and the box of what it names: four numbers in ``box_format``, pixels or fractions.

    ``source`` is the file and place where it stands, such as ``train.csv, line 7``, ``key`` its id, if it has one.
    Without a ``box_format`` the numbers have to tell what they are.
    """

    image: str
    phrase: str
    box: Box
    source: str
    key: str | None = None
    box_format: BoxFormat | None = "xyxy"


class Listing(NamedTuple):
    """By split (``""`` where unknown): the records, a line for each row that is none, and unread files."""

    splits: dict[str, list[Record]]
    problems: dict[str, list[str]]
    unread: dict[str, UserError]  # of a split whose file cannot be read; none of its rows are in the other two

    def has(self, split: str) -> bool:
        """Whether anything in the data, usable or not, is of a split."""
        return any(split in part for part in self)


class _Row(NamedTuple):
    source: str
    content: Any = None  # a mapping with image, phrase, box and maybe id, split and box_format, if it is sound
    split: str = ""  # what the file says of it
    problem: str = ""  # why it is no record


_Rows = Iterator[_Row]


class _BadRow(ValueError):
    """What is wrong with a row, to be told behind its place."""


def require_data(path: Path) -> None:
    """Raise DataError where there is no such folder or file."""
    if not os.path.exists(path):  # noqa: PTH110 - Path raises at long names
        raise DataError(f"data = {str(path)!r}: there is no such folder or file; it may be {_LAYOUTS}")


def read_listing(path: Path, box_format: BoxFormat | None = None) -> Listing:
    """Read a data set: a DIOR-RSVG folder, a folder with one file per split, or one file.

    ``box_format`` is that of boxes whose file does not say it; None: their numbers have to tell (see ``checks``).

    Raises:
        DataError: there is no such data set, or a file cannot be read that may hold every split, or none can.
    """
    require_data(path)
    if (path / "Annotations").is_dir():
        parts = [(split, path, rows) for split, rows in _read_voc(path).items()]
    else:
        files = _files_of(path) if path.is_dir() else {"": path}
        parts = [(split, file.parent, _reader_of(file)(file)) for split, file in files.items()]
    listing = Listing(defaultdict(list), defaultdict(list), {})
    for part, folder, rows in parts:
        try:
            entries = list(rows)
        except UserError as error:
            if not part:
                raise
            listing.unread[part] = error
            continue
        for row in entries:
            said = row.content.get("split") if isinstance(row.content, Mapping) else None
            split = str(said or "").strip().lower() or row.split or part
            try:
                record = _record_of(row, split, folder, box_format)
                listing.splits[split].append(record)
            except _BadRow as problem:
                listing.problems[split].append(f"{row.source}: {problem}")
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
        for file in (folder / f"{split}{ending}" for ending in _READERS):
            if file.is_file() and split in files:
                both = f"{files[split].name} and {file.name}"
                raise DataError(f"data = {str(folder)!r}: {both} both hold {split}; remove one")
            if file.is_file():
                files[split] = file
    if not files.keys() & {"train", "test"}:
        raise DataError(f"data = {str(folder)!r}: holds no annotations that are known here; it may be {_LAYOUTS}")
    return files


def _record_of(row: _Row, split: str, folder: Path, box_format: BoxFormat | None) -> Record:
    """The record of a row that is of ``split``. Raises _BadRow where it is none."""
    content = row.content
    if row.problem:
        raise _BadRow(row.problem)
    if not isinstance(content, Mapping):
        raise _BadRow(f"{content!r} is no object with image, phrase and box")
    for name in ("image", "phrase", "box"):
        if content.get(name) is None:
            raise _BadRow(f"has no {name}")
    image, phrase, box = _image_of(content["image"], folder), content["phrase"], _numbers_of(content["box"])
    if not _is_text(phrase):
        raise _BadRow(f"the phrase is {phrase!r}, no text")
    if not tokens_of(phrase):
        raise _BadRow(f"the phrase {phrase!r} has no words" if phrase.strip() else "the phrase is empty")
    if box is None:
        raise _BadRow(f"the box is {content['box']!r}, but has to be four numbers")
    said = content.get("box_format") or box_format
    if said not in (None, *BOX_FORMATS):
        raise _BadRow(f"box_format is {said!r}, but may be {', '.join(BOX_FORMATS)}")
    if split not in ("", *SPLITS):
        raise _BadRow(f"split is {split!r}, but may be {', '.join(SPLITS)}")
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
        raise _BadRow(f"the image is {name!r}, but has to be a file name")
    path = Path(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise _BadRow(f"the image {name!r} leads out of {str(root)!r}; put it there, and name it from there")
    places = [str(root / folder / path) for folder in _IMAGE_FOLDERS]
    return next(filter(os.path.isfile, places), str(root / path))


@contextmanager
def _text_of(file: Path, most_bytes: int = 2**30) -> Iterator[str]:
    """The text of a file; what parsers say of it within the context becomes an error that names the file."""
    try:
        yield read_bounded(file, most_bytes).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{str(file)!r} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{str(file)!r} cannot be read: {error.strerror or error}") from error
    except (UnsoundJSONError, ElementTree.ParseError) as error:
        raise DataError(f"{str(file)!r} is not valid {file.suffix[1:].upper()}: {error}") from error


def _lines_of(name: str, text: str) -> Iterator[tuple[str, str]]:
    """The lines that are not empty, each with its place; U+2028 and its like end none."""
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        if line.strip():
            yield f"{name}, line {number}", line


def _read_voc(root: Path) -> dict[str, _Rows]:
    """DIOR-RSVG: VOC XML files, whose objects are numbered over all files in the order of their sorted names.

    Behind a file that cannot be read no number is known; only splits with such numbers cannot be read.
    """
    files = sorted((root / "Annotations").glob("*.xml"), key=lambda file: file.name)
    if not files:
        raise DataError(f"{str(root / 'Annotations')!r} holds no .xml file")
    indices = [root / f"{split}.txt" for split in SPLITS if (root / f"{split}.txt").is_file()]
    objects = list[_Row]()
    try:
        for file in files:
            objects += _read_xml(file)
    except DataError as error:
        if not indices:
            raise
        return {index.stem: _read_index(index, objects, error) for index in indices}
    return {index.stem: _read_index(index, objects) for index in indices} or {"": iter(objects)}


def _read_index(index: Path, objects: Sequence[_Row], error: DataError | None = None) -> _Rows:
    """The objects whose numbers a file lists; ``error``: why there is none behind them."""
    with _text_of(index) as text:
        entries = text.split()
    first: dict[int, int] = {}
    for number, entry in enumerate(entries, start=1):
        source = f"{index.name}, entry {number}"
        if not (entry.isdecimal() and len(entry) <= 12 and int(entry) < len(objects)):
            if error is not None:
                raise error
            yield _Row(source, problem=f"{entry!r} is no index of the {len(objects)} objects")
        elif first.setdefault(int(entry), number) < number:
            yield _Row(source, problem=f"object {entry} is that of entry {first[int(entry)]} already")
        else:
            yield objects[int(entry)]


def _read_xml(file: Path) -> _Rows:
    with _text_of(file, most_bytes=2**22) as text:
        if "<!DOCTYPE" in text or "<!ENTITY" in text:  # entities can expand without bound, and VOC has none
            raise DataError(f"{str(file)!r} declares XML entities, which are refused; remove its <!DOCTYPE …>")
        tree = ElementTree.fromstring(text)
    image = Path((tree.findtext("filename") or f"{file.stem}.jpg").strip()).name
    for number, entry in enumerate(tree.iter("object"), start=1):
        box = [entry.findtext(f"bndbox/{side}", "").strip() for side in ("xmin", "ymin", "xmax", "ymax")]
        row = {"image": image, "phrase": entry.findtext("description"), "box": box, "box_format": "xyxy"}
        yield _Row(f"{file.name}, object {number}", row | {"id": f"{file.stem}/{number}"})


def _read_json(file: Path) -> _Rows:
    """A JSON list of objects, or such lists by split."""
    with _text_of(file) as text:
        entries = parse_json(text)
    if isinstance(entries, Mapping) and set(entries) <= set(SPLITS):
        parts = {split: part if isinstance(part, list) else [part] for split, part in entries.items()}
    elif isinstance(entries, list):
        parts = {"": entries}
    else:
        raise DataError(f"{str(file)!r} has to hold a list of objects with image, phrase and box")
    rows = [(split, entry) for split, part in parts.items() for entry in part]
    yield from (_Row(f"{file.name}, entry {n}", entry, split) for n, (split, entry) in enumerate(rows, start=1))


def _read_json_lines(file: Path) -> _Rows:
    """One JSON object a line."""
    with _text_of(file) as text:
        yield from (_Row(place, parse_json(line)) for place, line in _lines_of(file.name, text))


def _read_csv(file: Path) -> _Rows:
    """A table with the columns ``image,phrase`` and ``box`` or ``x1,y1,x2,y2``."""
    with _text_of(file) as text:
        rows = csv_rows(file, io.StringIO(text, newline=None))
        columns = [column.strip() for column in next(rows, (0, []))[1]]
        if not {"image", "phrase"} <= set(columns) or not ("box" in columns or set(_SIDES) <= set(columns)):
            raise DataError(
                f"{str(file)!r} has the columns {', '.join(columns) or '(none)'}; it needs image, phrase, and box or "
                "x1, y1, x2, y2"
            )
        for line, cells in rows:
            if not cells:
                continue
            row: dict[str, Any] = dict(zip(columns, cells, strict=False))
            box = {} if "box" in columns else {"box": [row.get(side) for side in _SIDES]}
            has_more = any(cell.strip() for cell in cells[len(columns) :])
            problem = f"has more than {len(columns)} cells; put a cell with commas between double quotes"
            yield _Row(f"{file.name}, line {line}", row | box, problem=problem if has_more else "")


def _read_rsvg_lines(file: Path) -> _Rows:
    """RSVG-HR: ``image,x1,y1,x2,y2,phrase`` a line; the phrase may have commas."""
    with _text_of(file) as text:
        for place, line in _lines_of(file.name, text):
            image, *box, phrase = [*(part.strip() for part in line.split(",", 5)), "", ""][:6]
            yield _Row(place, {"image": image, "box": box, "phrase": phrase})


def _read_pth(file: Path) -> _Rows:
    """TransVG and the first SatVG: a list of ``(image, _, box, phrase, _)``, read without running code in it."""
    entries = load_tensors(file)
    if not isinstance(entries, (list, tuple)):
        raise DataError(f"{str(file)!r} has to hold a list of (image, _, box, phrase, _)")
    for number, entry in enumerate(entries, start=1):
        is_row = isinstance(entry, (list, tuple)) and len(entry) >= 4
        row = {"image": entry[0], "box": entry[2], "phrase": entry[3]} if is_row else {}
        yield _Row(f"{file.name}, entry {number}", row)


_READERS: dict[str, Callable[[Path], _Rows]] = {
    ".json": _read_json,
    ".jsonl": _read_json_lines,
    ".csv": _read_csv,
    ".txt": _read_rsvg_lines,
    ".pth": _read_pth,
}


def _reader_of(file: Path) -> Callable[[Path], _Rows]:
    if file.suffix.lower() not in _READERS:
        endings = ", ".join(_READERS)
        raise DataError(f"data = {str(file)!r}: a file that ends in {endings} is needed; it may be {_LAYOUTS}")
    return _READERS[file.suffix.lower()]
