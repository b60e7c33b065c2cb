"""Checks of grounding data before training: boxes, images, copies across splits, ambiguous phrases."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import NamedTuple

import numpy as np

from sat_vg.backbone_finetuning.utils.errors import DataError
from sat_vg.backbone_finetuning.utils.printable import counted
from sat_vg.grounding.config import BoxFormat, OnBadRecord
from sat_vg.grounding.images import ImageStore
from sat_vg.grounding.metrics import ious_of, overlaps_of
from sat_vg.grounding.readers import Box, Record

_SHOWN = 5
_SLACK = 1.5  # pixels by which boxes may leave the image without a word: VOC counts from 1
_SAME_BOX = 0.5  # IoU from which two boxes are one object
_FORMATS = {"xyxy": "corners x1, y1, x2, y2", "xywh": "x, y, width, height"}  # that are told from the numbers


class Checked(NamedTuple):
    """Sound records by split, a line for each that is bad, and lines that say what was found or decided."""

    splits: dict[str, list[Record]]
    left_out: list[str]
    notes: list[str]


def check_records(
    splits: Mapping[str, Sequence[Record]], store: ImageStore, problems: Sequence[str], on_bad_record: OnBadRecord
) -> Checked:
    """Bring all boxes to corners inside their images, and look for what a training would stumble over.

    ``problems`` are those of records that could not be read; ``skip`` leaves bad records out.

    Raises:
        DataError: a record is bad and none may be left out, or a split has none left.
    """
    bad, notes, counts = list(problems), list[str](), Counter[tuple[str, str]]()
    everything = [record for records in splits.values() for record in records]
    num_small = sum(_is_small(record) for record in everything)
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
        more = [f"and {len(bad) - _SHOWN} more"] if len(bad) > _SHOWN else []
        raise DataError(
            "\n  ".join([f"{counted(len(bad), 'record')} cannot be used:", *bad[:_SHOWN], *more])
            + "\nCorrect them, or leave them out by --on_bad_record skip"
        )
    for split in sound:
        if not sound[split]:
            told = f"{len(bad)} of them cannot be used, such as {bad[0]}"
            raise DataError(f"the split {split} has no record left: {told}")
    notes += [counted(count, f"box {one}", f"boxes {many}") for (one, many), count in counts.items()]
    return Checked(sound, bad, notes + _ambiguous(sound) + _shared_images(sound, store))


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
    if _is_small(record) and not is_normalised:
        numbers = ", ".join(f"{side:g}" for side in record.box)
        raise DataError(
            f"the box {numbers} lies within one pixel, as if in fractions of the image, unlike most others"
        )
    width, height = store.boxes[record.image].width, store.boxes[record.image].height
    scale_x, scale_y = (width, height) if is_normalised else (1, 1)
    x1, y1, x2, y2 = box[0] * scale_x, box[1] * scale_y, box[2] * scale_x, box[3] * scale_y
    if x1 > x2 or y1 > y2:
        x1, x2, y1, y2 = min(x1, x2), max(x1, x2), min(y1, y2), max(y1, y2)
        counts["had its corners swapped", "had their corners swapped"] += 1
    inside = max(0.0, x1), max(0.0, y1), min(float(width), x2), min(float(height), y2)
    numbers = ", ".join(f"{side:g}" for side in record.box)
    if x1 == x2 or y1 == y2:
        raise DataError(f"the box {numbers} is empty")
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        raise DataError(f"the box {numbers} lies outside the image, which is {width} x {height} pixels")
    if max(inside[0] - x1, inside[1] - y1, x2 - inside[2], y2 - inside[3]) > _SLACK:
        counts["reached out of its image and was cut", "reached out of their images and were cut"] += 1
    return inside


def _ambiguous(splits: Mapping[str, Sequence[Record]]) -> list[str]:
    """Phrases that name two different boxes of one image."""
    notes = []
    for split, records in splits.items():
        boxes: dict[tuple[str, str], list[Box]] = {}
        for record in records:
            boxes.setdefault((record.image, record.phrase.casefold()), []).append(record.box)
        several = {key: np.array(few) for key, few in boxes.items() if len(few) > 1}
        found = [key for key, few in several.items() if ious_of(overlaps_of(few[:1], few[1:])).min() < _SAME_BOX]
        if found:
            count = counted(len(found), "phrase names", "phrases name")
            notes.append(f"{split}: {count} two boxes of one image, such as {found[0][1]!r} in {found[0][0]!r}")
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
