"""The phrases of a data set in batches: an image with several is decoded, and goes through the backbone, once."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sat_vg.backbone_finetuning.data.reading.decoding import decode_rgb
from sat_vg.backbone_finetuning.utils.cache_folder import cache_folder
from sat_vg.backbone_finetuning.utils.errors import DataError
from sat_vg.backbone_finetuning.utils.home_paths import expand_home
from sat_vg.backbone_finetuning.utils.printable import counted
from sat_vg.backbone_finetuning.utils.safe_files import write_text
from sat_vg.backbone_finetuning.utils.seeding import Purpose, derive_seed, numpy_generator
from sat_vg.backbone_finetuning.utils.terminal import say
from sat_vg.grounding.checks import check_records
from sat_vg.grounding.config import GroundingConfig
from sat_vg.grounding.images import ImageStore, turn_boxes, turn_images
from sat_vg.grounding.readers import Record, read_listing, split_records
from sat_vg.grounding.tiles import drawn_tiles
from sat_vg.grounding.words import IDENTITY, PADDING, SYMMETRIES, Symmetry, Vocabulary, tokens_of, turn_words

Encode = Callable[[Sequence[str], int], list[int]]  # words and max_words → numbers


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
        tensors = (self.images, self.masks, self.image_of, self.words, self.boxes)
        images, masks, image_of, words, boxes = (tensor.to(device) for tensor in tensors)
        return GroundingBatch(images, masks, image_of, words, boxes, self.places)


@dataclass(frozen=True)
class Phrases:
    """The records of a split, and everything that batches of them are made with."""

    records: Sequence[Record]
    store: ImageStore
    vocabulary: Vocabulary
    max_words: int  # of a phrase; further ones are cut off
    encode: Encode | None = None  # of a pre-trained text encoder; None: that of the vocabulary

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
        letterboxes, encode = self.store.boxes, self.encode or self.vocabulary.encode
        words, boxes = [], []
        for record in records:
            turn, box = turns[record.image], letterboxes[record.image].to_canvas(torch.tensor(record.box))
            words.append(encode(turn_words(tokens_of(record.phrase), turn), self.max_words))
            boxes.append(turn_boxes(box, turn))
        return GroundingBatch(
            images=torch.stack([turn_images(self.store.canvas(image), turn) for image, turn in turns.items()]),
            masks=torch.stack([turn_images(letterboxes[image].mask, turn) for image, turn in turns.items()]),
            image_of=torch.tensor([number[record.image] for record in records]),
            words=pad_words(words),
            boxes=torch.stack(boxes),
            places=places,
        )


def pad_words(phrases: Sequence[Sequence[int]]) -> Tensor:
    """Numbers of words as int64 ``[P, T]``, padded to the longest phrase."""
    longest = max(map(len, phrases))
    return torch.tensor([[*numbers, *[PADDING] * (longest - len(numbers))] for numbers in phrases])


def load_splits(
    config: GroundingConfig,
    vocabulary: Vocabulary | None,
    needed: Sequence[str],
    also: Iterable[str] = (),
    encode: Encode | None = None,
) -> tuple[dict[str, Phrases], list[str]]:
    """Checked phrases of the splits that are needed, and of others where there are some; all images are decoded.

    Without a ``vocabulary`` it is made from the training phrases; for ``encode`` see ``Phrases``.

    Returns:
        The phrases by split, and the records that were left out, a line each.

    Raises:
        DataError: the data cannot be read, a record is bad, or a needed split is missing.
    """
    path = drawn_tiles(cache_folder()) if config.data is None else expand_home(config.data)
    if config.data is None:
        say(f"no --data given: built-in drawn tiles in {path}. Your own: --data DIR")
    listing = read_listing(path, config.box_format)
    found, notes = split_records(listing, config.val_fraction, config.seed)
    splits = {split: records for split, records in found.items() if split in {*needed, *also}}
    images = list(dict.fromkeys(record.image for records in splits.values() for record in records))
    store = ImageStore(images, config.canvas_size, decode_rgb, cache_folder())
    checked = check_records(splits, store, listing.problems, config.on_bad_record)
    for split in needed:
        if split not in checked.splits:
            raise DataError(f"data = {str(path)!r}: has no records of {split}, only of {', '.join(found) or 'none'}")
    for note in (*notes, *checked.notes):
        say(f"data: {note}")
    vocabulary = vocabulary or Vocabulary.of(record.phrase for record in checked.splits["train"])
    phrases, told = dict[str, Phrases](), []
    for split, records in checked.splits.items():
        phrases[split] = Phrases(records, store, vocabulary, config.max_words, encode)
        num_images = len(phrases[split].by_image)
        told.append(f"{split} {counted(len(records), 'phrase')} about {counted(num_images, 'image')}")
    say(f"data: {', '.join(told)}")
    return phrases, checked.left_out


def fingerprint_of(splits: Mapping[str, Phrases]) -> str:
    """A hash of all images, boxes and phrases."""
    digest = hashlib.sha256()
    for split, phrases in splits.items():
        for record in phrases.records:
            digest.update(repr((split, Path(record.image).name, record.phrase, record.box)).encode())
        for image in phrases.by_image:
            digest.update(phrases.store.digests[image])
    return digest.hexdigest()


def list_left_out(left_out: Sequence[str], folder: Path) -> None:
    """Write the records that were left out into ``skipped_records.txt``; remove the list of an earlier run."""
    path = folder / "skipped_records.txt"
    path.unlink(missing_ok=True)
    if left_out:
        write_text(path, "\n".join([*left_out, ""]))
        say(f"left out: {counted(len(left_out), 'record')}, listed in {path}")
