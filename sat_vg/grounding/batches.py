"""The phrases of a data set in batches: an image with several is decoded, and goes through the backbone, once."""

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sat_vg.backbone_finetuning.data.reading.decoding import decode_rgb
from sat_vg.backbone_finetuning.utils.cache_folder import cache_folder
from sat_vg.backbone_finetuning.utils.errors import DataError
from sat_vg.backbone_finetuning.utils.home_paths import expand_home
from sat_vg.backbone_finetuning.utils.printable import counted, one_line
from sat_vg.backbone_finetuning.utils.safe_files import write_text
from sat_vg.backbone_finetuning.utils.seeding import Purpose, derive_seed, numpy_generator
from sat_vg.backbone_finetuning.utils.terminal import say
from sat_vg.grounding.checks import check_records
from sat_vg.grounding.config import SPLITS, GroundingConfig
from sat_vg.grounding.images import ImageStore, turn_boxes, turn_images
from sat_vg.grounding.readers import Listing, Record, read_listing, split_records
from sat_vg.grounding.tiles import drawn_tiles
from sat_vg.grounding.words import IDENTITY, PADDING, SYMMETRIES, Symmetry, tokens_of, turn_words


class GroundingBatch(NamedTuple):
    """P phrases and the I images that they are about."""

    images: Tensor  # uint8 [I, 3, S, S]
    masks: Tensor  # bool [I, S, S], True where there is padding
    image_of: Tensor  # int64 [P], the place of each phrase's image in images
    words: Tensor  # int64 [P, T], numbers of the words, padded with 0
    boxes: Tensor  # float [P, 4], corners in fractions of the canvas
    places: Sequence[int]  # of the phrases among the records of the split

    def to(self, device: torch.device) -> "GroundingBatch":
        """The same on a device."""
        images, masks, image_of, words, boxes = (tensor.to(device) for tensor in self[:5])
        return GroundingBatch(images, masks, image_of, words, boxes, self.places)


@dataclass(frozen=True)
class Phrases:
    """The records of a split, and everything that batches of them are made with."""

    records: Sequence[Record]
    store: ImageStore
    encode: Callable[[Sequence[str]], list[int]]  # words → numbers

    def __len__(self) -> int:
        return len(self.records)

    def num_batches(self, batch_size: int) -> int:
        """Batches of an epoch."""
        return -(-len(self) // batch_size)

    @cached_property
    def by_image(self) -> Mapping[str, list[int]]:
        """Places of the records of each image, the images in order."""
        places: dict[str, list[int]] = {image: [] for image in sorted({record.image for record in self.records})}
        for place, record in enumerate(self.records):
            places[record.image].append(place)
        return places

    def arrays(self) -> tuple[list[str], NDArray[np.float64], NDArray[np.float64]]:
        """The phrases; true corners ``[P, 4]``; width, height, width and height of images ``[P, 4]``; in pixels."""
        sizes = [self.store.boxes[record.image][:2] * 2 for record in self.records]
        boxes = [record.box for record in self.records]
        return [record.phrase for record in self.records], np.array(boxes, dtype=float), np.array(sizes, dtype=float)

    def in_order(self, batch_size: int) -> Iterator[GroundingBatch]:
        """All phrases, those of an image one after the other, as they are."""
        places = [place for group in self.by_image.values() for place in group]
        for first in range(0, len(places), batch_size):
            yield self._batch(places[first : first + batch_size], {})

    def shuffled(self, batch_size: int, seed: int, epoch: int, first: int, augment: bool) -> Iterator[GroundingBatch]:
        """The batches of an epoch from number ``first`` on: images in random order, each with all of its phrases.

        Each image is flipped and turned at random, with its boxes and words. All of it depends on seed, epoch and
        image alone.
        """
        order = numpy_generator(derive_seed(seed, Purpose.ORDER, epoch))
        images = [list(self.by_image)[place] for place in order.permutation(len(self.by_image))]
        groups = [self.by_image[image] for image in images]
        places = [group[other] for group in groups for other in order.permutation(len(group))]
        draws = numpy_generator(derive_seed(seed, Purpose.SAMPLE, epoch)).integers(len(SYMMETRIES), size=len(images))
        symmetries = {image: SYMMETRIES[draw] for image, draw in zip(images, draws, strict=True)} if augment else {}
        for begin in range(first * batch_size, len(places), batch_size):
            yield self._batch(places[begin : begin + batch_size], symmetries)

    def _batch(self, places: Sequence[int], symmetries: Mapping[str, Symmetry]) -> GroundingBatch:
        records = [self.records[place] for place in places]
        turns = {record.image: symmetries.get(record.image, IDENTITY) for record in records}
        number = {image: place for place, image in enumerate(turns)}
        letterboxes = self.store.boxes
        words, boxes = [], []
        for record in records:
            turn, box = turns[record.image], letterboxes[record.image].to_canvas(torch.tensor(record.box))
            words.append(self.encode(turn_words(tokens_of(record.phrase), turn)))
            boxes.append(turn_boxes(box, turn))
        return GroundingBatch(
            images=torch.stack([turn_images(self.store.canvas(image), turn) for image, turn in turns.items()]),
            masks=torch.stack([turn_images(letterboxes[image].mask, turn) for image, turn in turns.items()]),
            image_of=torch.tensor([number[record.image] for record in records]),
            words=pad_words(words),
            boxes=torch.stack(boxes),
            places=places,
        )


def pad_words(phrases: Iterable[Sequence[int]]) -> Tensor:
    """Numbers of words as int64 ``[P, T]``, padded to the longest phrase."""
    rows = [torch.tensor(numbers, dtype=torch.int64) for numbers in phrases]
    return pad_sequence(rows, batch_first=True, padding_value=PADDING)


@dataclass(frozen=True)
class Data:
    """Sound records by split, their decoded images, and a line for each record that was left out."""

    splits: Mapping[str, Sequence[Record]]
    store: ImageStore
    left_out: Sequence[str]

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


def _problems_of(listing: Listing, wanted: Collection[str]) -> tuple[list[str], list[str]]:
    """A line for each row of the splits that are wanted that is no record, and lines on what is wrong with others.

    Raises:
        DataError: the file of a split that is wanted cannot be read.
    """
    problems, unused = list[str](), list[str]()
    for split, error in listing.unread.items():
        if split in wanted:
            raise error
        unused.append(f"not used here: {split}: {error}")
    for split, lines in listing.problems.items():
        if (split or "train") in wanted or split not in ("", *SPLITS):
            problems += lines
        else:
            count = counted(len(lines), "record")
            unused.append(f"not used here: {count} of {split or 'train'} cannot be used, such as {lines[0]}")
    return problems, unused


def load_data(config: GroundingConfig, needed: Sequence[str], also: Sequence[str] = ()) -> Data:
    """Check the splits that are needed, and others where there are some; all their images are decoded.

    Raises:
        DataError: the data cannot be read, a record of these splits is bad, or a needed split is missing.
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
    problems, unused = _problems_of(listing, wanted)
    notes += unused
    images = list(dict.fromkeys(record.image for records in splits.values() for record in records))
    store = ImageStore(images, config.canvas_size, decode_rgb, cache_folder())
    checked = check_records(splits, store, problems, config.on_bad_record)
    for split in needed:
        if split not in checked.splits:
            bad = "".join(f"; of {split} none can be used, such as {line}" for line in listing.problems[split][:1])
            raise DataError(
                f"data = {str(path)!r}: has no records of {split}, only of {', '.join(found) or 'none'}{bad}"
            )
    for note in (*notes, *checked.notes):
        say(f"data: {note}")
    told = []
    for split, records in checked.splits.items():
        num_images = len({record.image for record in records})
        told.append(f"{split} {counted(len(records), 'phrase')} about {counted(num_images, 'image')}")
    say(f"data: {', '.join(told)}")
    return Data(checked.splits, store, checked.left_out)
