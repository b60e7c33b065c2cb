"""Checks of grounding data before training: boxes, images, copies across splits, ambiguous phrases."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sat_vg.backbone_finetuning.utils.errors import DataError
from sat_vg.backbone_finetuning.utils.printable import counted
from sat_vg.grounding.config import BoxFormat, OnBadRecord
from sat_vg.grounding.images import ImageStore
from sat_vg.grounding.metrics import overlaps_of
from sat_vg.grounding.readers import Box, Record

_SHOWN = 5
_SLACK = 1.5  # pixels by which boxes may leave the image without a word: VOC counts from 1
_SAME_BOX = 0.5  # IoU from which two boxes are one object


@dataclass(frozen=True)
class Checked:
    """Records whose boxes are corners inside their images.

    Attributes:
        splits: sound records by split.
        left_out: bad records, one line each.
        notes: what was found or decided, in lines.
    """

    splits: dict[str, list[Record]]
    left_out: list[str]
    notes: list[str]


def check_records(
    splits: Mapping[str, Sequence[Record]],
    store: ImageStore,
    box_format: BoxFormat | None,
    problems: Sequence[str],
    on_bad_record: OnBadRecord,
) -> Checked:
    """Bring all boxes into one form, and look for what a training would stumble over.

    Args:
        splits: records as they were read.
        store: of all their images.
        box_format: of the boxes; None: guessed from all of them.
        problems: of records that could not be read.
        on_bad_record: ``error``: stop; ``skip``: leave them out and say so.

    Raises:
        DataError: a record is bad and none may be left out, or a split has none left.
    """
    notes: list[str] = []
    bad = [*problems, *_repeated_keys(splits)]
    everything = [record for records in splits.values() for record in records]
    box_format, is_normalised = _guess(everything, store, box_format, notes)
    counts: Counter[str] = Counter()
    sound: dict[str, list[Record]] = {}
    for split, records in splits.items():
        sound[split] = []
        for record in records:
            checked = _check(record, store, box_format, is_normalised, counts)
            if isinstance(checked, str):
                bad.append(checked)
            else:
                sound[split].append(checked)
    if bad and on_bad_record == "error":
        shown = "\n  ".join([*bad[:_SHOWN], *([f"and {len(bad) - _SHOWN} more"] if len(bad) > _SHOWN else [])])
        raise DataError(
            f"{counted(len(bad), 'record')} cannot be used:\n  {shown}\nCorrect them, or leave them out by "
            "--on_bad_record skip"
        )
    notes += [f"{counted(count, 'box', 'boxes')} {what}" for what, count in counts.items()]
    notes += _ambiguous(sound) + _shared_images(sound, store)
    for split, records in sound.items():
        if not records:
            raise DataError(
                f"the split {split} has no record left: {len(bad)} of them cannot be used, such as {bad[0]}"
            )
    return Checked(sound, bad, notes)


def corners(box: Sequence[float], box_format: BoxFormat) -> Box:
    """A box of a format as corners ``(x1, y1, x2, y2)``."""
    a, b, c, d = map(float, box)
    if box_format == "xyxy":
        return a, b, c, d
    if box_format == "xywh":
        return a, b, a + c, b + d
    return a - c / 2, b - d / 2, a + c / 2, b + d / 2


def _repeated_keys(splits: Mapping[str, Sequence[Record]]) -> list[str]:
    found: list[str] = []
    for records in splits.values():
        first: dict[str, str] = {}
        for record in records:
            if record.key is not None and first.setdefault(record.key, record.source) != record.source:
                found.append(f"{record.source}: the id {record.key!r} is that of {first[record.key]} already")
    return found


def _guess(
    records: Sequence[Record], store: ImageStore, box_format: BoxFormat | None, notes: list[str]
) -> tuple[BoxFormat, bool]:
    """The format of boxes and whether they are fractions of the image, from what fits most of them."""
    largest = max((max(map(abs, record.box)) for record in records), default=0.0)
    is_normalised = 0 < largest <= 1
    if is_normalised:
        notes.append("boxes: no coordinate is above 1, so they are taken for fractions of the image")
    if box_format is not None:
        return box_format, is_normalised
    sizes = [(record.box, store.boxes[record.image]) for record in records if record.image in store.boxes]

    def misfits(kind: BoxFormat) -> int:
        count = 0
        for box, image in sizes:
            x1, y1, x2, y2 = corners(box, kind)
            width, height = (1.0, 1.0) if is_normalised else (image.width + _SLACK, image.height + _SLACK)
            count += x1 >= x2 or y1 >= y2 or x2 > width or y2 > height
        return count

    by_corners, by_size = misfits("xyxy"), misfits("xywh")
    chosen: BoxFormat = "xywh" if by_size < by_corners else "xyxy"
    words = {"xyxy": "corners x1, y1, x2, y2", "xywh": "x, y, width, height"}
    notes.append(
        f"boxes: nothing says their format; taken as {words[chosen]} ({min(by_corners, by_size)} of {len(sizes)} do "
        f"not fit that, {max(by_corners, by_size)} the other). --box_format says it"
    )
    return chosen, is_normalised


def _check(
    record: Record, store: ImageStore, box_format: BoxFormat, is_normalised: bool, counts: Counter[str]
) -> Record | str:
    """The record with its box as corners inside the image, or what is wrong with it."""
    if record.image in store.problems:
        return f"{record.source}: {store.problems[record.image]}"
    image = store.boxes[record.image]
    box = corners(record.box, box_format)
    if is_normalised:
        box = (box[0] * image.width, box[1] * image.height, box[2] * image.width, box[3] * image.height)
    x1, y1, x2, y2 = box
    if x1 > x2 or y1 > y2:
        x1, x2, y1, y2 = min(x1, x2), max(x1, x2), min(y1, y2), max(y1, y2)
        counts["had their corners swapped"] += 1
    inside: Box = (max(0.0, x1), max(0.0, y1), min(float(image.width), x2), min(float(image.height), y2))
    place = f"{record.source}: the box {_numbers(record.box)}"
    if x2 - x1 <= 0 or y2 - y1 <= 0:
        return f"{place} is empty"
    if inside[2] - inside[0] <= 0 or inside[3] - inside[1] <= 0:
        return f"{place} lies outside the image, which is {image.width} x {image.height} pixels"
    if max(inside[0] - x1, inside[1] - y1, x2 - inside[2], y2 - inside[3]) > _SLACK:
        counts["reached out of their image and were cut"] += 1
    return replace(record, box=inside)


def _numbers(box: Box) -> str:
    return ", ".join(f"{side:g}" for side in box)


def _ambiguous(splits: Mapping[str, Sequence[Record]]) -> list[str]:
    """Phrases that name two different boxes of one image."""
    notes = []
    for split, records in splits.items():
        boxes: dict[tuple[str, str], list[Box]] = {}
        for record in records:
            boxes.setdefault((record.image, record.phrase.casefold()), []).append(record.box)
        several = {key: np.array(few) for key, few in boxes.items() if len(few) > 1}
        found = [key for key, few in several.items() if overlaps_of(few[:1], few[1:]).ious.min() < _SAME_BOX]
        if found:
            count = counted(len(found), "phrase names", "phrases name")
            notes.append(f"{split}: {count} two boxes of one image, such as {found[0][1]!r} in {found[0][0]!r}")
    return notes


def _shared_images(splits: Mapping[str, Sequence[Record]], store: ImageStore) -> list[str]:
    """Images, told by their pixels, that stand in two splits."""
    of = {split: {store.digests[record.image] for record in records} for split, records in splits.items()}
    names = list(of)
    pairs = [(a, b) for place, a in enumerate(names) for b in names[place + 1 :] if of[a] & of[b]]
    return [
        f"{counted(len(of[a] & of[b]), 'image is', 'images are')} in {a} and in {b}: results on {b} flatter the model"
        for a, b in pairs
    ]
