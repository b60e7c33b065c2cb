"""Boxes come into one form; what a training would stumble over is counted and said."""

import numpy as np
import pytest
import torch

from sat_vg.backbone_finetuning.utils.errors import DataError
from sat_vg.grounding.data import Data, check_records
from sat_vg.grounding.images import ImageStore
from sat_vg.grounding.readers import Record


def decode(path):
    if "broken" in path:
        raise DataError(f"{path!r} cannot be read")
    generator = torch.Generator().manual_seed(sum(map(ord, path.replace("copy_", ""))))
    return torch.randint(256, (3, 60, 100), generator=generator, dtype=torch.uint8)


def check(records, tmp_path, problems=(), on_bad="error", **splits):
    splits = splits or {"train": records}
    store = ImageStore(sorted({r.image for few in splits.values() for r in few}), 32, decode, tmp_path)
    return check_records(splits, store, problems, on_bad)


def record(box, image="a", phrase="the ship", source="f, line 1", key=None, box_format="xyxy"):
    return Record(image, phrase, box, source, key, box_format)


def test_boxes_are_cut_to_the_image_and_swapped_corners_put_right(tmp_path):
    checked = check([record((90, 10, 120, 20)), record((30, 40, 10, 20))], tmp_path)
    assert [one.box for one in checked.splits["train"]] == [(90, 10, 100, 20), (10, 20, 30, 40)]
    assert checked.notes[:2] == ["1 box reached out of its image and was cut", "1 box had its corners swapped"]


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (record((200, 10, 220, 20)), "lies outside the image, which is 100 x 60 pixels"),
        (record((10, 10, 10, 20)), "is empty"),
        (record((1, 1, 9, 9), image="broken"), "'broken' cannot be read"),
    ],
)
def test_bad_records_stop_with_their_place_or_are_left_out(bad, problem, tmp_path):
    good = record((1, 1, 20, 20), source="f, line 9")
    with pytest.raises(DataError, match="1 record cannot be used") as caught:
        check([bad, good], tmp_path)
    assert "f, line 1: " in str(caught.value) and problem in str(caught.value)
    assert "--on_bad_record skip" in str(caught.value)
    checked = check([bad, good], tmp_path, on_bad="skip")
    assert [one.source for one in checked.splits["train"]] == ["f, line 9"]
    assert len(checked.left_out) == 1


def test_ids_that_come_twice_are_bad(tmp_path):
    twice = [record((1, 1, 9, 9), key="7"), record((1, 1, 9, 9), key="7", source="f, line 2")]
    with pytest.raises(DataError, match="f, line 2: the id '7' is that of f, line 1 already"):
        check(twice, tmp_path)
    checked = check(twice, tmp_path, on_bad="skip")
    assert [one.source for one in checked.splits["train"]] == ["f, line 1"] and len(checked.left_out) == 1


@pytest.mark.parametrize(
    ("boxes", "expected", "said"),
    [
        ([(70, 40, 20, 15), (80, 30, 15, 10)], (70, 40, 90, 55), "x, y, width, height"),
        ([(10, 10, 30, 40), (60, 10, 90, 50)], (10, 10, 30, 40), "corners x1, y1, x2, y2"),
    ],
)
def test_the_format_of_boxes_is_guessed_from_all_and_said(boxes, expected, said, tmp_path):
    checked = check([record(box, box_format=None) for box in boxes], tmp_path)
    assert checked.splits["train"][0].box == expected
    assert said in checked.notes[0] and "--box_format" in checked.notes[0]


def test_a_format_that_is_said_counts_beside_boxes_that_do_not_say_theirs(tmp_path):
    said = record((10, 10, 20, 30), box_format="xywh")
    silent = [record((10, 10, 30, 40), box_format=None), record((60, 10, 90, 50), box_format=None)]
    splits = check([], tmp_path, train=[said], val=silent).splits
    assert splits["train"][0].box == (10, 10, 30, 40) == splits["val"][0].box


def test_fractions_with_one_number_above_1_are_fractions(tmp_path):
    """Taken for pixels, all boxes would lie within one, without a word."""
    rounded = record((0.5, 0.5, 1.0001, 0.75), source="f, line 3")
    checked = check([record((0.1, 0.2, 0.5, 1)), record((0.1, 0.2, 0.5, 1)), rounded], tmp_path)
    assert [one.box for one in checked.splits["train"]] == [(10, 12, 50, 60)] * 2 + [(50, 30, 100, 45)]
    assert checked.notes[0] == (
        "boxes: in 2 of 3 no coordinate is above 1, so they are taken for fractions of the image"
    )


def test_fractions_among_pixels_are_bad(tmp_path):
    records = [record((10, 12, 50, 60)), record((10, 12, 50, 60)), record((0.1, 0.2, 0.5, 1), source="f, line 3")]
    with pytest.raises(DataError, match=r"f, line 3: the box 0.1, 0.2, 0.5, 1 lies within one pixel, as if in frac"):
        check(records, tmp_path)


def test_fractions_are_told_and_scaled(tmp_path):
    checked = check([record((0.1, 0.5, 0.2, 1.0))], tmp_path)
    np.testing.assert_allclose(checked.splits["train"][0].box, (10, 30, 20, 60))
    assert "fractions of the image" in checked.notes[0]


def test_ambiguous_phrases_and_images_in_two_splits_are_counted(tmp_path):
    train = [record((1, 1, 9, 9)), record((50, 30, 90, 55)), record((1, 1, 9, 10), phrase="the tank")]
    test = [record((1, 1, 9, 9), image="copy_a", phrase="another")]
    notes = check([], tmp_path, train=train, test=test).notes
    assert notes == [
        "train: 1 phrase names two boxes of one image, such as 'the ship' in 'a'",
        "1 image is in train and in test: results on test flatter the model",
    ]


def test_a_record_that_comes_twice_is_told(tmp_path):
    """Two phrases are one if they have the same words."""
    train = [record((1, 1, 9, 9)), record((1, 1, 9, 9), phrase="The ship."), record((50, 30, 90, 55), phrase="tanks")]
    assert check(train, tmp_path).notes == ["train: 1 phrase stands twice beside one box, such as 'the ship' in 'a'"]


def test_a_split_without_a_sound_record_is_an_error(tmp_path):
    with pytest.raises(DataError, match="the split train has no record left"):
        check([record((5, 5, 5, 5))], tmp_path, on_bad="skip")


def test_what_is_left_out_is_listed_whatever_its_name(tmp_path):
    """A file's name may be no text, and hold a line break."""
    Data({}, None, ["\udcff\n.xml, object 1: its box is empty"]).list_left_out(tmp_path)
    listed = (tmp_path / "skipped_records.txt").read_text(encoding="utf-8")
    assert listed == "\\udcff\\n.xml, object 1: its box is empty\n"
