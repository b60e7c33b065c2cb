"""The data of a run or an evaluation: read, split, decoded, checked."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sat_vg.backbone_finetuning.data.reading.decoding import decode_rgb
from sat_vg.backbone_finetuning.utils.cache_folder import cache_folder
from sat_vg.backbone_finetuning.utils.errors import DataError
from sat_vg.backbone_finetuning.utils.home_paths import expand_home
from sat_vg.backbone_finetuning.utils.printable import counted
from sat_vg.backbone_finetuning.utils.safe_files import write_text
from sat_vg.backbone_finetuning.utils.terminal import say
from sat_vg.grounding.configs.choices import SPLITS, BoxFormat, OnBadRecord
from sat_vg.grounding.configs.grounding_config import GroundingConfig
from sat_vg.grounding.data.batches import Phrases
from sat_vg.grounding.data.checks import Checked, check_records
from sat_vg.grounding.data.images import ImageStore
from sat_vg.grounding.data.readers import read_listing, split_records
from sat_vg.grounding.data.tiles import drawn_tiles
from sat_vg.grounding.data.words import Vocabulary

LEFT_OUT = "skipped_records.txt"


@dataclass(frozen=True)
class RunData:
    """The phrases of a run.

    Attributes:
        splits: phrases by split.
        left_out: records that cannot be used, one line each.
        fingerprint: hash of all images, boxes and phrases.
    """

    splits: dict[str, Phrases]
    left_out: list[str]
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class DataChoice:
    """Which data are loaded, and how.

    Attributes:
        data: the data set; None: the built-in drawn tiles.
        image_size: side of the canvas, in pixels.
        box_format: format of boxes whose file does not name it; None: guessed.
        on_bad_record: whether a bad record stops the command or is left out.
        val_fraction: share of the training images that is held out where there is no ``val``.
        seed: seed of that choice.
    """

    data: str | None
    image_size: int
    box_format: BoxFormat | None
    on_bad_record: OnBadRecord
    val_fraction: float
    seed: int


def load_records(
    choice: DataChoice, needed: Sequence[str], wanted: Iterable[str] = SPLITS
) -> tuple[Checked, ImageStore]:
    """Checked records of the wanted splits, and their decoded images.

    Raises:
        DataError: the data cannot be read, a record is bad, or a needed split is missing.
    """
    path = drawn_tiles(cache_folder()) if choice.data is None else expand_home(choice.data)
    if choice.data is None:
        say(f"no --data given: built-in drawn tiles in {path}. Your own: --data DIR")
    listing = read_listing(path, choice.box_format)
    found, notes = split_records(listing, choice.val_fraction, choice.seed)
    splits = {split: records for split, records in found.items() if split in {*wanted, *needed}}
    images = list(dict.fromkeys(record.image for records in splits.values() for record in records))
    store = ImageStore(images, choice.image_size, decode_rgb, cache_folder())
    checked = check_records(splits, store, listing.box_format, listing.problems, choice.on_bad_record)
    missing = [split for split in needed if split not in checked.splits]
    if missing:
        raise DataError(f"data = {str(path)!r}: has no records of {missing[0]}, only of {', '.join(found) or 'none'}")
    for note in (*notes, *checked.notes):
        say(f"data: {note}")
    return checked, store


def load_run_data(config: GroundingConfig) -> RunData:
    """The phrases of a training run.

    Raises:
        DataError: as ``load_records``.
    """
    choice = DataChoice(
        data=config.data, image_size=config.canvas_size, box_format=config.box_format,
        on_bad_record=config.on_bad_record, val_fraction=config.val_fraction, seed=config.seed,
    )  # fmt: skip
    checked, store = load_records(choice, ("train", "val"))
    vocabulary = Vocabulary.of(record.phrase for record in checked.splits["train"])
    splits = {
        split: Phrases(records, store, vocabulary, config.max_words, config.canvas_size)
        for split, records in checked.splits.items()
    }
    digest, told = hashlib.sha256(), []
    for split, phrases in splits.items():
        images = sorted({record.image for record in phrases.records})
        told.append(f"{split} {counted(len(phrases), 'phrase')} about {counted(len(images), 'image')}")
        for record in phrases.records:
            digest.update(repr((split, Path(record.image).name, record.phrase, record.box)).encode())
        for image in images:
            digest.update(store.content(image))
    say(f"data: {', '.join(told)}")
    return RunData(splits, checked.left_out, digest.hexdigest())


def list_left_out(left_out: Sequence[str], folder: Path) -> None:
    """Write the records that were left out into ``skipped_records.txt``; remove the list of an earlier run."""
    (folder / LEFT_OUT).unlink(missing_ok=True)
    if left_out:
        write_text(folder / LEFT_OUT, "\n".join([*left_out, ""]))
        say(f"left out: {counted(len(left_out), 'record')}, listed in {folder / LEFT_OUT}")
