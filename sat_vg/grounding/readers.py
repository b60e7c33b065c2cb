"""Readers of grounding data: DIOR-RSVG folders, lines, JSON, CSV and the .pth lists of TransVG.

Every reader gives the same ``Listing``. What cannot be read of a record becomes a line in ``problems``; a file that
cannot be read at all is an error.
"""

import csv
import io
import math
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from sat_vg.backbone_finetuning.utils.errors import DataError
from sat_vg.backbone_finetuning.utils.json_reading import UnsoundJSONError, parse_json
from sat_vg.backbone_finetuning.utils.regular_files import read_bounded
from sat_vg.grounding.config import BOX_FORMATS, SPLITS, BoxFormat

Box = tuple[float, float, float, float]

_MOST_BYTES = 2**30
_MOST_XML_BYTES = 2**22
_SIDES = ("x1", "y1", "x2", "y2")
_IMAGE_FOLDERS = ("JPEGImages", "images", "Images", "image", ".")
_LAYOUTS = (
    "a DIOR-RSVG folder (Annotations/, JPEGImages/, train.txt …), a folder with train.json, .jsonl, .csv, .txt or "
    ".pth (and val, test), or one such file"
)


@dataclass(frozen=True)
class Record:
    """A phrase about an image, and the box of what it names.

    Attributes:
        image: path of the image file.
        phrase: the text.
        box: corners ``(x1, y1, x2, y2)`` in pixels of the image, as far as readers know; see ``checks``.
        source: file and place where the record stands, such as ``train.csv, line 7``.
        key: the record's id, where the data have one.
    """

    image: str
    phrase: str
    box: Box
    source: str
    key: str | None = None


@dataclass(frozen=True)
class Listing:
    """The records of a data set as they were read.

    Attributes:
        splits: records by split (``train``, ``val``, ``test``), or under ``""`` where the data do not say.
        problems: records that could not be read, one line each with file and place.
        box_format: what the four numbers of a box are; None: not said, so they have to tell.
    """

    splits: dict[str, list[Record]]
    problems: Sequence[str] = ()
    box_format: BoxFormat | None = "xyxy"


def read_listing(path: Path, box_format: BoxFormat | None = None) -> Listing:
    """Read a data set.

    Args:
        path: a DIOR-RSVG folder; a folder with one file per split; or one file, whose records may name their split.
        box_format: of boxes whose file does not say it; None: guessed from all of them (see ``checks``).

    Raises:
        DataError: there is no such data set, or a file of it cannot be read.
    """
    if not path.exists():
        raise DataError(f"data = {str(path)!r}: there is no such folder or file; it may be {_LAYOUTS}")
    if (path / "Annotations").is_dir():
        return _read_voc(path)
    if path.is_file():
        return _read_file(path, "", box_format)
    listings = {}
    for split in SPLITS:
        files = [path / f"{split}{ending}" for ending in _READERS if (path / f"{split}{ending}").is_file()]
        if len(files) > 1:
            raise DataError(
                f"data = {str(path)!r}: {files[0].name} and {files[1].name} both hold {split}; remove one"
            )
        if files:
            listings[split] = _read_file(files[0], split, box_format)
    if "train" not in listings and "test" not in listings:
        raise DataError(f"data = {str(path)!r}: holds no annotations that are known here; it may be {_LAYOUTS}")
    formats = {listing.box_format for listing in listings.values()}
    return Listing(
        {split: records for name in listings for split, records in listings[name].splits.items()},
        [problem for listing in listings.values() for problem in listing.problems],
        formats.pop() if len(formats) == 1 else None,
    )


def split_records(listing: Listing, val_fraction: float, seed: int) -> tuple[dict[str, list[Record]], list[str]]:
    """Records by split; validation images are drawn by seed where the data have no ``val``.

    All records of an image stay on one side.

    Returns:
        The splits, and lines that say what was decided.
    """
    splits = {name: list(records) for name, records in listing.splits.items() if records}
    notes: list[str] = []
    if "" in splits:
        splits["train"] = splits.pop("") + splits.get("train", [])
    if "train" in splits and "val" not in splits:
        images = sorted({record.image for record in splits["train"]})
        random.Random(seed).shuffle(images)
        held = set(images[: max(1, round(val_fraction * len(images)))]) if len(images) > 1 else set()
        splits["val"] = [record for record in splits["train"] if record.image in held]
        splits["train"] = [record for record in splits["train"] if record.image not in held]
        notes.append(f"val: {len(held)} of {len(images)} training images, drawn by seed {seed}")
    return {name: records for name, records in splits.items() if records}, notes


def _text_of(file: Path, most_bytes: int = _MOST_BYTES) -> str:
    try:
        return read_bounded(file, most_bytes).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{str(file)!r} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{str(file)!r} cannot be read: {error.strerror or error}") from error


def _lines_of(file: Path) -> Iterator[tuple[str, str]]:
    """The lines of a file that are not empty, each with its place."""
    for number, line in enumerate(_text_of(file).splitlines(), start=1):
        if line.strip():
            yield f"{file.name}, line {number}", line


def _read_voc(root: Path) -> Listing:
    """DIOR-RSVG: VOC XML files, whose objects are numbered over all files in the order of their sorted names."""
    files = sorted((root / "Annotations").glob("*.xml"), key=lambda file: file.name)
    if not files:
        raise DataError(f"{str(root / 'Annotations')!r} holds no .xml file")
    objects: list[Record | str] = []
    for file in files:
        objects += _objects_of(file, root)
    splits: dict[str, list[Record]] = {}
    problems: list[str] = []
    for split in SPLITS:
        index = root / f"{split}.txt"
        if index.is_file():
            splits[split] = []
            for number, line in enumerate(_text_of(index).split(), start=1):
                if not line.isdecimal() or len(line) > 12 or int(line) >= len(objects):
                    problems.append(
                        f"{index.name}, entry {number}: {line!r} is no index of the {len(objects)} objects"
                    )
                elif isinstance(found := objects[int(line)], str):
                    problems.append(found)
                else:
                    splits[split].append(found)
    if not splits:
        splits = {"": [one for one in objects if isinstance(one, Record)]}
        problems = [one for one in objects if isinstance(one, str)]
    return Listing(splits, problems)


def _objects_of(file: Path, root: Path) -> list[Record | str]:
    """The objects of an XML file: a record each, or what is wrong with it."""
    text = _text_of(file, _MOST_XML_BYTES)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:  # entities can expand without bound, and VOC has none
        raise DataError(f"{str(file)!r} declares XML entities, which are refused; remove its <!DOCTYPE …>")
    try:
        tree = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise DataError(f"{str(file)!r} is not valid XML: {error}") from error
    name = Path((tree.findtext("filename") or f"{file.stem}.jpg").strip()).name
    image = _find_image(root, name)
    found: list[Record | str] = []
    for number, entry in enumerate(tree.iter("object"), start=1):
        source = f"{file.name}, object {number}"
        corners = [entry.findtext(f"bndbox/{side}", "").strip() for side in ("xmin", "ymin", "xmax", "ymax")]
        found.append(_record(image, entry.findtext("description"), corners, source, f"{file.stem}/{number}"))
    return found


def _record(image: Path | str, phrase: object, box: object, source: str, key: str | None = None) -> Record | str:
    """A record of plain values, or a line that says what is wrong with them."""
    if not isinstance(phrase, str) or not phrase.strip():
        return f"{source}: the phrase is {'empty' if isinstance(phrase, str) else f'{phrase!r}, no text'}"
    numbers = _numbers(box)
    if numbers is None:
        return f"{source}: the box is {box!r}, but has to be four numbers"
    return Record(str(image), " ".join(phrase.split()), numbers, source, key)


def _numbers(box: object) -> Box | None:
    if isinstance(box, str):
        box = [part for part in re.split(r"[\s,;\[\]()]+", box) if part]
    if hasattr(box, "tolist"):
        box = box.tolist()
    if not isinstance(box, Sequence) or len(box) != 4 or any(isinstance(side, bool) for side in box):
        return None
    try:
        a, b, c, d = (float(side) for side in box)
    except (TypeError, ValueError, OverflowError):
        return None
    return (a, b, c, d) if all(map(math.isfinite, (a, b, c, d))) else None


def _find_image(root: Path, name: str) -> Path:
    """An image named in annotations: beside them or in a folder of images; its usual place where there is none."""
    for folder in _IMAGE_FOLDERS:
        if (root / folder / name).is_file():
            return root / folder / name
    return root / name


def _inside(root: Path, name: object, source: str) -> Path | str:
    """The path of an image, which may not lead out of the data set's folder."""
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        return f"{source}: the image is {name!r}, but has to be a file name"
    path = Path(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        return f"{source}: the image {name!r} leads out of {str(root)!r}; put it there, and name it from there"
    return _find_image(root, str(path))


def _read_file(file: Path, split: str, box_format: BoxFormat | None) -> Listing:
    """One file; records may name their own ``split`` and ``box_format``."""
    reader = _READERS.get(file.suffix.lower())
    if reader is None:
        raise DataError(
            f"data = {str(file)!r}: a file that ends in {', '.join(_READERS)} is needed; it may be {_LAYOUTS}"
        )
    splits: dict[str, list[Record]] = {}
    problems: list[str] = []
    formats: set[BoxFormat | None] = set()
    for source, entry in reader(file):
        found = _record_of(entry, source, file.parent)
        said = (isinstance(entry, Mapping) and entry.get("box_format")) or box_format
        own = str((isinstance(entry, Mapping) and entry.get("split")) or split).strip().lower()
        if isinstance(found, Record) and said is not None and said not in BOX_FORMATS:
            found = f"{source}: box_format is {said!r}, but may be {', '.join(BOX_FORMATS)}"
        elif isinstance(found, Record) and own not in ("", *SPLITS):
            found = f"{source}: split is {own!r}, but may be {', '.join(SPLITS)}"
        if isinstance(found, str):
            problems.append(found)
        else:
            formats.add(said)
            splits.setdefault(own, []).append(found)
    if len(formats) > 1:
        raise DataError(
            f"{str(file)!r} has boxes of several formats ({', '.join(map(str, formats))}); give one to all"
        )
    return Listing(splits, problems, formats.pop() if formats else box_format)


def _record_of(entry: Any, source: str, root: Path) -> Record | str:
    """A record of an object with ``image``, ``phrase`` and ``box``, or what is wrong with it."""
    if not isinstance(entry, Mapping):
        return f"{source}: {entry!r} is no object with image, phrase and box"
    missing = [name for name in ("image", "phrase", "box") if entry.get(name) is None]
    if missing:
        return f"{source}: has no {missing[0]}"
    image = _inside(root, entry["image"], source)
    key = None if entry.get("id") is None else str(entry["id"])
    return image if isinstance(image, str) else _record(image, entry["phrase"], entry["box"], source, key)


def _read_json(file: Path) -> Iterator[tuple[str, Any]]:
    """A JSON list of objects, or such lists by split."""
    try:
        entries = parse_json(_text_of(file))
    except UnsoundJSONError as error:
        raise DataError(f"{str(file)!r} is not valid JSON: {error}") from error
    if isinstance(entries, Mapping) and set(entries) <= set(SPLITS):
        entries = [
            {"split": name, **entry} if isinstance(entry, Mapping) else entry
            for name, part in entries.items()
            for entry in (part if isinstance(part, list) else [part])
        ]
    if not isinstance(entries, list):
        raise DataError(f"{str(file)!r} has to hold a list of objects with image, phrase and box")
    yield from ((f"{file.name}, entry {number}", entry) for number, entry in enumerate(entries, start=1))


def _read_json_lines(file: Path) -> Iterator[tuple[str, Any]]:
    """One JSON object a line."""
    for source, line in _lines_of(file):
        try:
            yield source, parse_json(line)
        except UnsoundJSONError as error:
            raise DataError(f"{str(file)!r} is not valid JSON: {error}") from error


def _read_csv(file: Path) -> Iterator[tuple[str, Any]]:
    """A table with the columns ``image,phrase`` and ``box`` or ``x1,y1,x2,y2``."""
    reader = csv.DictReader(io.StringIO(_text_of(file)))
    columns = [str(column).strip() for column in reader.fieldnames or ()]
    reader.fieldnames = columns
    if not {"image", "phrase"} <= set(columns) or not ("box" in columns or set(_SIDES) <= set(columns)):
        raise DataError(
            f"{str(file)!r} has the columns {', '.join(columns) or '(none)'}; it needs image, phrase, and box or "
            "x1, y1, x2, y2"
        )
    try:
        for row in reader:
            box = {} if "box" in columns else {"box": [row[side] for side in _SIDES]}
            yield f"{file.name}, line {reader.line_num}", row | box
    except csv.Error as error:
        raise DataError(f"{str(file)!r}, line {reader.line_num}: {error}") from error


def _read_rsvg_lines(file: Path) -> Iterator[tuple[str, Any]]:
    """RSVG-HR: ``image,x1,y1,x2,y2,phrase`` a line; the phrase may have commas."""
    for source, line in _lines_of(file):
        image, *box, phrase = (
            [part.strip() for part in line.split(",", 5)] if line.count(",") >= 5 else [line, "", ""]
        )
        yield source, {"image": image, "box": box, "phrase": phrase}


def _read_pth(file: Path) -> Iterator[tuple[str, Any]]:
    """TransVG and the first SatVG: a list of ``(image, _, box, phrase, _)``, read without running code in it."""
    from sat_vg.backbone_finetuning.utils.tensor_files import load_tensors  # torch, which other formats do not need

    entries = load_tensors(file)
    if not isinstance(entries, (list, tuple)):
        raise DataError(f"{str(file)!r} has to hold a list of (image, _, box, phrase, _)")
    for number, entry in enumerate(entries, start=1):
        is_row = isinstance(entry, (list, tuple)) and len(entry) >= 4
        values = {"image": entry[0], "box": entry[2], "phrase": entry[3]} if is_row else {}
        yield f"{file.name}, entry {number}", values


_READERS: dict[str, Callable[[Path], Iterator[tuple[str, Any]]]] = {
    ".json": _read_json,
    ".jsonl": _read_json_lines,
    ".csv": _read_csv,
    ".txt": _read_rsvg_lines,
    ".pth": _read_pth,
}
