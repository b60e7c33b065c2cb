"""The data of a training or an evaluation: read, checked for what a training would stumble over, and decoded."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
from torch import Tensor

from sat_vg.backbone_finetuning.data.checks.image_traits import describe_decisions
from sat_vg.backbone_finetuning.data.reading.decoder import Traits
from sat_vg.backbone_finetuning.data.reading.geo import decoder_of
from sat_vg.backbone_finetuning.utils.cache_folder import cache_folder
from sat_vg.backbone_finetuning.utils.errors import DataError
from sat_vg.backbone_finetuning.utils.home_paths import expand_home
from sat_vg.backbone_finetuning.utils.preprocessing import Preprocessing
from sat_vg.backbone_finetuning.utils.printable import counted, list_lines, one_line
from sat_vg.backbone_finetuning.utils.safe_files import write_text
from sat_vg.backbone_finetuning.utils.terminal import say
from sat_vg.grounding.config import SPLITS, BoxFormat, GroundingConfig, OnBadRecord
from sat_vg.grounding.images import ImageStore, read_image
from sat_vg.grounding.metrics import ious_of, overlaps_of
from sat_vg.grounding.readers import Box, Listing, Record, read_listing, split_records
from sat_vg.grounding.tiles import drawn_tiles
from sat_vg.grounding.words import tokens_of

_FEW_LEVELS = 64  # of 256
_SHOWN = 5
_SLACK = 1.5  # pixels by which boxes may leave the image without a word: VOC counts from 1
_SAME_BOX = 0.5  # IoU from which two boxes are one object
_FORMATS = {"xyxy": "corners x1, y1, x2, y2", "xywh": "x, y, width, height"}  # that are told from the numbers
_SWAPPED = "had its corners swapped", "had their corners swapped"
_CUT = "reached out of its image and was cut", "reached out of their images and were cut"


@dataclass(frozen=True)
class Data:
    """Sound records by split, their decoded images, and lines for people."""

    splits: Mapping[str, Sequence[Record]]
    store: ImageStore
    left_out: Sequence[str]  # a line for each record that is bad
    notes: Sequence[str] = ()  # what was found or decided

    def fingerprint(self) -> str:
        """A hash of all images, boxes and phrases."""
        digest = hashlib.sha256()
        for split, records in self.splits.items():
            for record in records:
                digest.update(repr((split, Path(record.image).name, record.phrase, record.box)).encode())
            for image in sorted({record.image for record in records}):
                digest.update(self.store.digests[image])
        return digest.hexdigest()

    def list_left_out(self, folder: Path) -> None:
        """Write what was left out into ``skipped_records.txt``; remove the list of an earlier run."""
        path = folder / "skipped_records.txt"
        path.unlink(missing_ok=True)
        if self.left_out:
            write_text(path, "".join(f"{one_line(line)}\n" for line in self.left_out))
            say(f"left out: {counted(len(self.left_out), 'record')}, listed in {path}")


def load_data(
    config: GroundingConfig, preprocessing: Preprocessing, needed: Sequence[str], also: Sequence[str] = ()
) -> Data:
    """Check the splits that are needed, and others where there are some; all their images are decoded.

    ``preprocessing`` is that of the backbone, which says how images are read. Raises DataError where the data cannot
    be read, a record of these splits is bad, or a needed split is missing.
    """
    path = drawn_tiles(cache_folder()) if config.data is None else expand_home(config.data)
    if config.data is None:
        say(f"no --data given: built-in drawn tiles in {path}. Your own: --data DIR")
    listing = read_listing(path, config.box_format)
    found, notes = split_records(listing, config.val_fraction, config.seed)
    wanted = {*needed, *also}
    splits = {split: records for split, records in found.items() if split in wanted}
    if "val" in wanted and not listing.has("val"):
        wanted |= {"train"}  # of which val was drawn
    problems = _problems_of(listing, wanted, notes)
    formats = {record.box_format for records in splits.values() for record in records}
    if config.box_format not in (None, *formats) and formats:
        notes.append(f"box_format = {config.box_format!r} has no effect: all boxes say their own")
    if {"train", "val"} <= set(needed) and listing.has("val") and config.val_fraction != GroundingConfig.val_fraction:
        notes.append(f"val_fraction = {config.val_fraction} has no effect: there is a val")
    images = list(dict.fromkeys(record.image for records in splits.values() for record in records))
    traits: dict[str, Traits] = {}
    decoder = decoder_of(preprocessing)

    def decode(image: str) -> Tensor:
        picture = read_image(image, decoder)
        traits[image] = picture.traits
        return picture.pixels

    store = ImageStore(images, config.canvas_size, decode, cache_folder())
    notes += _notes_on_values(traits)
    data = check_records(splits, store, problems, config.on_bad_record)
    for split in needed:
        if split not in data.splits:
            bad = "".join(f"; of {split} none can be used, such as {line}" for line in listing.problems[split][:1])
            raise DataError(
                f"data = {str(path)!r}: has no records of {split}, only of {', '.join(found) or 'none'}{bad}"
            )
    told = []
    for split, records in data.splits.items():
        num_images = len({record.image for record in records})
        told.append(f"{split} {counted(len(records), 'phrase')} about {counted(num_images, 'image')}")
    for note in (*notes, *data.notes, ", ".join(told)):
        say(f"data: {note}")
    return data


def _problems_of(listing: Listing, wanted: Collection[str], notes: list[str]) -> list[str]:
    """A line for each bad row of the splits that are wanted, of which all must be read; ``notes`` take the others."""
    problems = list[str]()
    for split, error in listing.unread.items():
        if split in wanted:
            raise error
        notes.append(f"not used here: {split}: {error}")
    for split, lines in listing.problems.items():
        if (split or "train") in wanted or split not in ("", *SPLITS):
            problems += lines
        else:
            count = counted(len(lines), "record")
            notes.append(f"not used here: {count} of {split or 'train'} cannot be used, such as {lines[0]}")
    return problems


def _notes_on_values(traits: Mapping[str, Traits]) -> list[str]:
    """Lines on images that could be read otherwise, or of whose values little is left."""
    traits = dict(sorted(traits.items()))  # images are read in threads
    notes, flat = describe_decisions(traits), [path for path, one in traits.items() if 0 < one.levels < _FEW_LEVELS]
    if flat:
        notes.append(
            f"{counted(len(flat), 'image has', 'images have')} values of more than 8 bits of which fewer than "
            f"{_FEW_LEVELS} levels of grey are left, such as {flat[0]!r}; a backbone that was fine-tuned with "
            "--rescale percentile spreads them"
        )
    return notes


def check_records(
    splits: Mapping[str, Sequence[Record]], store: ImageStore, problems: Sequence[str], on_bad_record: OnBadRecord
) -> Data:
    """Bring all boxes to corners inside their images, and look for what a training would stumble over.

    ``problems`` are those of records that could not be read. ``skip`` leaves bad records out; DataError: one is bad
    and none may be left out, or a split has none left.
    """
    bad, notes, counts = list(problems), list[str](), Counter[tuple[str, str]]()
    everything = [record for records in splits.values() for record in records]
    num_small = sum(map(_is_small, everything))
    is_normalised = 2 * num_small > len(everything)  # rounding brings fractions above 1, and a record may be wrong
    if is_normalised:
        most = "" if num_small == len(everything) else f"in {num_small} of {len(everything)} "
        notes.append(f"boxes: {most}no coordinate is above 1, so they are taken for fractions of the image")
    guessed = _guess([record for record in everything if record.box_format is None], store, is_normalised, notes)
    sound: dict[str, list[Record]] = {}
    for split, records in splits.items():
        sound[split], first_of_key = [], dict[str, str]()
        for record in records:
            try:
                if record.key and first_of_key.setdefault(record.key, record.source) != record.source:
                    raise DataError(f"the id {record.key!r} is that of {first_of_key[record.key]} already")
                box = corners(record.box, record.box_format or guessed)
                inside = _inside(box, record, store, is_normalised, counts)
                sound[split].append(replace(record, box=inside, box_format="xyxy"))
            except DataError as problem:
                bad.append(f"{record.source}: {problem}")
    if bad and on_bad_record == "error":
        raise DataError(
            f"{counted(len(bad), 'record')} cannot be used:\n{list_lines(bad, _SHOWN)}\n"
            "Correct them, or leave them out by --on_bad_record skip"
        )
    for split in sound:
        if not sound[split]:
            told = f"{len(bad)} of them cannot be used, such as {bad[0]}"
            raise DataError(f"the split {split} has no record left: {told}")
    notes += [counted(count, f"box {one}", f"boxes {many}") for (one, many), count in counts.items()]
    return Data(sound, store, bad, notes + _repeated(sound) + _shared_images(sound, store))


def corners(box: Box, box_format: BoxFormat) -> Box:
    """A box of a format as corners ``(x1, y1, x2, y2)``."""
    a, b, c, d = box
    if box_format == "xyxy":
        return box
    return (a, b, a + c, b + d) if box_format == "xywh" else (a - c / 2, b - d / 2, a + c / 2, b + d / 2)


def _guess(records: Sequence[Record], store: ImageStore, is_normalised: bool, notes: list[str]) -> BoxFormat:
    """The format of boxes that do not say it: corners, or corner and size, whichever fits more of them."""
    readable = [record for record in records if record.image in store.boxes]
    misfits: dict[BoxFormat, int] = {"xyxy": 0, "xywh": 0}
    for record in readable:
        image = store.boxes[record.image]
        width, height = (1.0, 1.0) if is_normalised else (image.width + _SLACK, image.height + _SLACK)
        for kind in misfits:
            x1, y1, x2, y2 = corners(record.box, kind)
            misfits[kind] += x1 >= x2 or y1 >= y2 or x2 > width or y2 > height
    chosen = min(misfits, key=lambda kind: misfits[kind])
    if records:
        notes.append(
            f"boxes: nothing says their format; taken as {_FORMATS[chosen]} ({min(misfits.values())} of "
            f"{len(readable)} do not fit that, {max(misfits.values())} the other). --box_format says it"
        )
    return chosen


def _is_small(record: Record) -> bool:
    """Whether a box looks like fractions of the image."""
    return 0 < max(map(abs, record.box)) <= 1


def _inside(
    box: Box, record: Record, store: ImageStore, is_normalised: bool, counts: Counter[tuple[str, str]]
) -> Box:
    """Corners as they lie inside the image, in pixels; ``counts`` takes what had to be done to them."""
    if record.image in store.problems:
        raise DataError(store.problems[record.image])
    numbers = ", ".join(f"{side:g}" for side in record.box)
    if _is_small(record) and not is_normalised:
        raise DataError(
            f"the box {numbers} lies within one pixel, as if in fractions of the image, unlike most others"
        )
    width, height = store.boxes[record.image].width, store.boxes[record.image].height
    scale_x, scale_y = (width, height) if is_normalised else (1, 1)
    x1, y1, x2, y2 = box[0] * scale_x, box[1] * scale_y, box[2] * scale_x, box[3] * scale_y
    if x1 > x2 or y1 > y2:
        (x1, x2), (y1, y2) = sorted((x1, x2)), sorted((y1, y2))
        counts[_SWAPPED] += 1
    inside = max(0.0, x1), max(0.0, y1), min(float(width), x2), min(float(height), y2)
    if x1 == x2 or y1 == y2:
        raise DataError(f"the box {numbers} is empty")
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        raise DataError(f"the box {numbers} lies outside the image, which is {width} x {height} pixels")
    if max(inside[0] - x1, inside[1] - y1, x2 - inside[2], y2 - inside[3]) > _SLACK:
        counts[_CUT] += 1
    return inside


def _repeated(splits: Mapping[str, Sequence[Record]]) -> list[str]:
    """Phrases, told by their words, that name two different boxes of one image, or one box twice."""
    notes = []
    for split, records in splits.items():
        boxes: dict[tuple[str, str], list[Box]] = defaultdict(list)
        for record in records:
            boxes[record.image, " ".join(tokens_of(record.phrase))].append(record.box)
        several = {key: np.array(few) for key, few in boxes.items() if len(few) > 1}
        two = [key for key, few in several.items() if ious_of(overlaps_of(few[:1], few[1:])).min() < _SAME_BOX]
        twice = [key for key, few in several.items() if len(np.unique(few, axis=0)) < len(few)]
        for found, one, many in (
            (two, "phrase names two boxes of one image", "phrases name two boxes of one image"),
            (twice, "phrase stands twice beside one box", "phrases stand twice beside one box"),
        ):
            if found:
                example = f"such as {found[0][1]!r} in {found[0][0]!r}"
                notes.append(f"{split}: {counted(len(found), one, many)}, {example}")
    return notes


def _shared_images(splits: Mapping[str, Sequence[Record]], store: ImageStore) -> list[str]:
    """Images, told by their pixels, that stand in two splits."""
    digests = {split: {store.digests[record.image] for record in records} for split, records in splits.items()}
    shared = {(a, b): len(digests[a] & digests[b]) for a, b in combinations(digests, 2)}
    return [
        f"{counted(count, 'image is', 'images are')} in {a} and in {b}: results on {b} flatter the model"
        for (a, b), count in shared.items()
        if count
    ]
