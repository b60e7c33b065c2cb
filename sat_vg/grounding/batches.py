"""Phrases in batches: an image with several is decoded, and goes through the backbone, once."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sat_vg.backbone_finetuning.utils.seeding import Purpose, derive_seed, numpy_generator
from sat_vg.grounding.images import ImageStore, turn_boxes, turn_images
from sat_vg.grounding.readers import Record
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
        return self._batches([place for group in self.by_image.values() for place in group], batch_size)

    def shuffled(self, batch_size: int, seed: int, epoch: int, first: int, augment: bool) -> Iterator[GroundingBatch]:
        """The batches of an epoch from number ``first`` on: images in random order, each with all of its phrases.

        Each image is flipped and turned at random, with its boxes and words. All of it depends on seed, epoch and
        image alone.
        """
        order = numpy_generator(derive_seed(seed, Purpose.ORDER, epoch))
        names = list(self.by_image)
        images = [names[place] for place in order.permutation(len(names))]
        groups = [self.by_image[image] for image in images]
        places = [group[other] for group in groups for other in order.permutation(len(group))]
        draws = numpy_generator(derive_seed(seed, Purpose.SAMPLE, epoch)).integers(len(SYMMETRIES), size=len(images))
        turns = {image: SYMMETRIES[draw] for image, draw in zip(images, draws, strict=True)} if augment else {}
        return self._batches(places[first * batch_size :], batch_size, turns)

    def _batches(
        self, places: Sequence[int], batch_size: int, turns: Mapping[str, Symmetry] | None = None
    ) -> Iterator[GroundingBatch]:
        for first in range(0, len(places), batch_size):
            yield self.batch(places[first : first + batch_size], turns or {})

    def batch(self, places: Sequence[int], turns: Mapping[str, Symmetry]) -> GroundingBatch:
        """The records at ``places``, those of each image in ``turns`` turned and flipped with it."""
        records = [self.records[place] for place in places]
        turn_of = {record.image: turns.get(record.image, IDENTITY) for record in records}
        number = {image: place for place, image in enumerate(turn_of)}
        letterboxes = self.store.boxes
        words, boxes = [], []
        for record in records:
            turn, box = turn_of[record.image], letterboxes[record.image].to_canvas(torch.tensor(record.box))
            words.append(self.encode(turn_words(tokens_of(record.phrase), turn)))
            boxes.append(turn_boxes(box, turn))
        return GroundingBatch(
            images=torch.stack([turn_images(self.store.canvas(image), turn) for image, turn in turn_of.items()]),
            masks=torch.stack([turn_images(letterboxes[image].mask, turn) for image, turn in turn_of.items()]),
            image_of=torch.tensor([number[record.image] for record in records]),
            words=pad_words(words),
            boxes=torch.stack(boxes),
            places=places,
        )


def pad_words(phrases: Iterable[Sequence[int]]) -> Tensor:
    """Numbers of words as int64 ``[P, T]``, padded to the longest phrase."""
    rows = [torch.tensor(numbers, dtype=torch.int64) for numbers in phrases]
    return pad_sequence(rows, batch_first=True, padding_value=PADDING)
