"""Image, box, mask and words are flipped and turned together, exactly."""

from functools import partial

import numpy as np
import pytest
import torch

from sat_vg.grounding.batches import Phrases
from sat_vg.grounding.images import ImageStore, Letterbox, letterbox, turn_boxes, turn_images
from sat_vg.grounding.readers import Record
from sat_vg.grounding.words import SYMMETRIES, Vocabulary, tokens_of, turn_words


@pytest.mark.parametrize("symmetry", SYMMETRIES)
def test_a_box_stays_around_its_pixels(symmetry):
    image = torch.zeros(1, 20, 20)
    image[:, 3:9, 12:17] = 1  # rows 3 to 8, columns 12 to 16
    turned = turn_images(image, symmetry)[0]
    x1, y1, x2, y2 = (20 * turn_boxes(torch.tensor([12, 3, 17, 9]) / 20, symmetry)).round().int().tolist()
    assert turned[y1:y2, x1:x2].all() and turned.sum() == 30


@pytest.mark.parametrize(("width", "height"), [(100, 50), (50, 100), (64, 64), (3, 1000)])
def test_a_letterbox_gives_boxes_back(width, height):
    canvas, box = letterbox(torch.full((3, height, width), 255, dtype=torch.uint8), 64)
    assert canvas.shape == (3, 64, 64)
    assert max(box.extent) == 64
    assert (canvas[0] > 0).sum() == box.extent[0] * box.extent[1]
    corners = torch.tensor([width * 0.25, height * 0.5, width * 0.75, height * 1.0])
    torch.testing.assert_close(box.to_image(box.to_canvas(corners)), corners)


def test_predicted_boxes_do_not_leave_the_image():
    assert Letterbox(100, 50, 64).to_image(torch.tensor([-0.1, 0.2, 1.0, 0.9])).tolist() == [
        0,
        pytest.approx(20),
        100,
        50,
    ]


def phrases(tmp_path, records, vocabulary):
    def decode(path):
        image = torch.zeros(3, 40, 40, dtype=torch.uint8)
        image[:, 5:15, 5:15] = 200  # at the upper left
        return image

    store = ImageStore(sorted({record.image for record in records}), 40, decode, tmp_path)
    return Phrases(records, store, partial(vocabulary.encode, max_words=10))


def test_augmented_samples_are_consistent(tmp_path):
    """Wherever the bright square is after flips and turns, the box is around it and the words name that corner."""
    records = [Record(f"{number}", "the upper left square", (5, 5, 15, 15), f"line {number}") for number in range(64)]
    vocabulary = Vocabulary.of(["the upper left square"])
    data = phrases(tmp_path, records, vocabulary)
    words = dict(enumerate(vocabulary.words, start=2))
    seen = set()
    for batch in data.shuffled(16, seed=0, epoch=0, first=0, augment=True):
        for image, box, numbers in zip(batch.images[batch.image_of], batch.boxes, batch.words, strict=True):
            x1, y1, x2, y2 = (40 * box).round().int().tolist()
            assert (image[0, y1:y2, x1:x2] == 200).all() and (image[0] == 200).sum() == 100
            said = {words[int(number)] for number in numbers if number}
            assert ("left" if x1 < 20 else "right") in said and ("upper" if y1 < 20 else "lower") in said
            seen.add((x1 < 20, y1 < 20))
    assert len(seen) == 4


@pytest.mark.parametrize("symmetry", SYMMETRIES)
def test_turned_data_are_the_data_turned(symmetry, tmp_path):
    """A turned image with the turned phrase and box, as it is, equals the image turned by the augmentation."""
    image = torch.randint(256, (3, 40, 40), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images = {"image": image, "turned": turn_images(image, symmetry)}
    phrase, box = "the ship above the tank in the upper left corner", torch.tensor([5.0, 10.0, 15.0, 30.0])
    turned_box = tuple((40 * turn_boxes(box / 40, symmetry)).round().tolist())
    turned_phrase = " ".join(turn_words(tokens_of(phrase), symmetry))
    records = [
        Record("image", phrase, tuple(box.tolist()), "line 1"),
        Record("turned", turned_phrase, turned_box, "line 2"),
    ]
    store = ImageStore(list(images), 40, images.__getitem__, tmp_path)
    data = Phrases(records, store, partial(Vocabulary.of([phrase]).encode, max_words=20))
    one, two = data.batch([0], {"image": symmetry}), data.batch([1], {})
    for name in ("images", "masks", "words"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name
    torch.testing.assert_close(one.boxes, two.boxes, atol=1e-6, rtol=0)


def test_batches_depend_on_seed_and_epoch_alone_and_begin_anywhere(tmp_path):
    records = [Record(f"{number // 2}", f"word{number}", (5, 5, 15, 15), f"line {number}") for number in range(22)]
    data = phrases(tmp_path, records, Vocabulary.of(record.phrase for record in records))

    def told(**where):
        return [(batch.words.tolist(), batch.boxes.tolist()) for batch in data.shuffled(4, augment=True, **where)]

    whole = told(seed=1, epoch=2, first=0)
    assert len(whole) == data.num_batches(4) == 6
    assert told(seed=1, epoch=2, first=3) == whole[3:]
    assert told(seed=1, epoch=3, first=0) != whole != told(seed=2, epoch=2, first=0)
    taken = [records[place].source for batch in data.shuffled(4, 1, 2, 0, True) for place in batch.places]
    assert sorted(taken) == sorted(record.source for record in records)


def test_an_image_with_several_phrases_is_in_a_batch_once(tmp_path):
    records = [Record(f"{number // 4}", f"word{number}", (5, 5, 15, 15), f"line {number}") for number in range(8)]
    (batch,) = phrases(tmp_path, records, Vocabulary(())).in_order(8)
    assert len(batch.images) == 2 and batch.image_of.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert np.array_equal(batch.masks.numpy(), np.zeros((2, 40, 40), dtype=bool))
