"""Batches of phrases: an image with several phrases is loaded, and goes through the backbone, once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sat_vg.backbone_finetuning.utils.seeding import Purpose, derive_seed, numpy_generator
from sat_vg.grounding.data.images import ImageStore, turn_boxes, turn_images
from sat_vg.grounding.data.records import Record
from sat_vg.grounding.data.words import IDENTITY, PADDING, SYMMETRIES, Symmetry, Vocabulary, tokens_of, turn_words


@dataclass(frozen=True)
class GroundingBatch:
    """Phrases and the images that they are about.

    Attributes:
        images: uint8 ``[I, 3, S, S]``.
        masks: bool ``[I, S, S]``, True where there is padding.
        image_of: int64 ``[P]``, the place of each phrase's image in ``images``.
        words: int64 ``[P, T]``, numbers of the words, padded with 0.
        boxes: float ``[P, 4]``, corners in fractions of the canvas.
        records: of the phrases.
    """

    images: Tensor
    masks: Tensor
    image_of: Tensor
    words: Tensor
    boxes: Tensor
    records: Sequence[Record]

    def to(self, device: torch.device) -> "GroundingBatch":
        """The same on a device."""
        tensors = (self.images, self.masks, self.image_of, self.words, self.boxes)
        images, masks, image_of, words, boxes = (tensor.to(device) for tensor in tensors)
        return GroundingBatch(images, masks, image_of, words, boxes, self.records)


@dataclass(frozen=True)
class Phrases:
    """The records of a split, and everything that batches of them are made with.

    Attributes:
        records: of the split.
        store: of all images.
        vocabulary: of the model.
        max_words: of a phrase; further ones are cut off.
        size: side of the canvas, in pixels.
    """

    records: Sequence[Record]
    store: ImageStore
    vocabulary: Vocabulary
    max_words: int
    size: int

    def __len__(self) -> int:
        return len(self.records)

    def in_order(self, batch_size: int) -> Iterator[GroundingBatch]:
        """All phrases, those of an image one after the other, as they are."""
        by_image = self._by_image()
        places = [place for image in sorted(by_image) for place in by_image[image]]
        for first in range(0, len(places), batch_size):
            yield self._batch(places[first : first + batch_size], {})

    def shuffled(self, batch_size: int, seed: int, epoch: int, first: int, augment: bool) -> Iterator[GroundingBatch]:
        """The batches of an epoch from number ``first`` on: images in random order, each with all of its phrases.

        Each image is flipped and turned at random, with its boxes and words. All of it depends on seed, epoch and
        image alone.
        """
        generator = numpy_generator(derive_seed(seed, Purpose.ORDER, epoch))
        by_image = self._by_image()
        images = [sorted(by_image)[place] for place in generator.permutation(len(by_image))]
        places = [by_image[image][other] for image in images for other in generator.permutation(len(by_image[image]))]
        draws = numpy_generator(derive_seed(seed, Purpose.SAMPLE, epoch)).integers(len(SYMMETRIES), size=len(images))
        symmetries = {image: SYMMETRIES[draw] for image, draw in zip(images, draws, strict=True)} if augment else {}
        for begin in range(first * batch_size, len(places), batch_size):
            yield self._batch(places[begin : begin + batch_size], symmetries)

    def num_batches(self, batch_size: int) -> int:
        """Batches of an epoch."""
        return -(-len(self.records) // batch_size)

    def _by_image(self) -> Mapping[str, list[int]]:
        by_image: dict[str, list[int]] = {}
        for place, record in enumerate(self.records):
            by_image.setdefault(record.image, []).append(place)
        return by_image

    def _batch(self, places: Sequence[int], symmetries: Mapping[str, Symmetry]) -> GroundingBatch:
        records = [self.records[place] for place in places]
        images = list(dict.fromkeys(record.image for record in records))
        turned = [symmetries.get(image, IDENTITY) for image in images]
        canvases = [self.store.canvas(image) for image in images]
        masks = [self.store.boxes[image].mask for image in images]
        number = {image: place for place, image in enumerate(images)}
        image_of = [number[record.image] for record in records]
        words = [
            self.vocabulary.encode(turn_words(tokens_of(record.phrase), turned[place]), self.max_words)
            for record, place in zip(records, image_of, strict=True)
        ]
        boxes = [
            turn_boxes(self.store.boxes[record.image].to_canvas(torch.tensor(record.box)), turned[place])
            for record, place in zip(records, image_of, strict=True)
        ]
        return GroundingBatch(
            torch.stack([turn_images(canvas, way) for canvas, way in zip(canvases, turned, strict=True)]),
            torch.stack([turn_images(mask, way) for mask, way in zip(masks, turned, strict=True)]),
            torch.tensor(image_of),
            pad_words(words),
            torch.stack(boxes),
            records,
        )


def pad_words(phrases: Sequence[Sequence[int]]) -> Tensor:
    """Numbers of words as int64 ``[P, T]``, padded to the longest phrase."""
    longest = max(map(len, phrases))
    return torch.tensor([[*numbers, *[PADDING] * (longest - len(numbers))] for numbers in phrases])
