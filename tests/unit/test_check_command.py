"""``sat-vg check``: what it finds, in text and as JSON, and its exit codes."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
from conftest import write_image
from PIL import Image

from sat_vg.backbone_finetuning.commands.check.image_stats import RgbStats
from sat_vg.backbone_finetuning.data.checks.readable import Examined
from sat_vg.backbone_finetuning.data.sources.splits import load_class_folders


@pytest.fixture
def check(command):
    return partial(command, "check")


def findings(check, *arguments):
    code, out, err = check(*arguments, "--json")
    return code, json.loads(out), err


def smooth(path, seed):
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC).save(path)


def test_clean(check, class_folders):
    code, out, err = check(class_folders)
    assert code == 0
    assert err == ""
    for part in ("27 train, 9 val", "sizes in train: 40 x 40 (27)", "fewer than 10 images of 'field'", "0 errors"):
        assert part in out, (part, out)
    code, found, _ = findings(check, class_folders)
    assert code == 0
    assert found["classes"]["sea"] == {"train": 9, "val": 3}
    assert found["errors"] == []
    assert (class_folders.parent / "cache/readable_images.npz").exists()  # which a training will use


def test_copies_and_conflicts(check, class_folders):
    train, val = class_folders / "train", class_folders / "val"
    shutil.copy(train / "sea/train_1.png", val / "sea/copy.png")
    shutil.copy(train / "sea/train_3.png", train / "town/conflict.png")
    with Image.open(train / "field/train_1.png") as image:
        image.save(train / "field/again.bmp")
    code, found, err = findings(check, class_folders)
    assert code == 2
    assert err.startswith("error: the data have 2 errors")
    assert [sorted(place["path"].rpartition("/")[2] for place in group) for group in found["copies"]] == [
        ["again.bmp", "train_1.png"],
        ["copy.png", "train_1.png"],
        ["conflict.png", "train_3.png"],
    ]
    assert "1 in train and val" in found["errors"][0]
    assert "1 image with more than one label" in found["errors"][1]
    assert any("1 superfluous copy" in warning for warning in found["warnings"])


def test_near_copies(check, class_folders):
    smooth(class_folders / "train/sea/near.png", 1)
    with Image.open(class_folders / "train/sea/near.png") as image:
        image.save(class_folders / "val/sea/near.jpg", quality=85)
    code, found, _ = findings(check, class_folders)
    assert code == 0
    assert [[path.rpartition("images/")[2] for path in pair] for pair in found["near_copies"]] == [
        ["train/sea/near.png", "val/sea/near.jpg"]
    ]
    assert any("1 of them across splits" in warning for warning in found["warnings"])


def test_copies_in_a_drawn_split_are_judged_as_the_training_splits(check, tmp_path):
    root = tmp_path / "drawn"
    for name in ("a", "b"):
        for index in range(20):
            write_image(root / name / f"{index:02}.png", (99, 99, 99), 50 * (name == "b") + index // 2)
    splits = load_class_folders(root)
    code, found, _ = findings(check, root)
    assert code == 0
    assert found["errors"] == []
    assert any(warning.startswith("copies lie in train and val as drawn") for warning in found["warnings"])
    assert len(found["copies"]) == 20
    assert all(len({place["split"] for place in group}) == 1 for group in found["copies"])
    assert sum(counts["val"] for counts in found["classes"].values()) > 0
    assert len(splits.train) + len(splits.val) == sum(sum(counts.values()) for counts in found["classes"].values())


def test_unreadable_and_empty_classes(check, class_folders):
    for path in (class_folders / "train/sea").iterdir():
        path.write_bytes(b"")
    for path in (class_folders / "val/town").iterdir():
        path.unlink()
    code, out, _ = check(class_folders)
    assert code == 2
    assert "9 of 33 images cannot be read" in out
    assert "error: train has no readable image of 'sea'" in out
    assert "warning: val has no readable image of 'town'" in out


def test_nothing_readable(check, class_folders):
    for path in class_folders.rglob("*.*"):
        path.write_bytes(b"")
    code, found, _ = findings(check, class_folders)
    assert code == 2
    assert found["mean"] is None
    assert len(found["unreadable"]) == 36


def test_balance_and_grey(check, tmp_path):
    for name, count in (("rare", 2), ("common", 60)):
        for index in range(count):
            write_image(tmp_path / "set" / name / f"{index}.png", (99, 99, 99), 100 * (name == "rare") + index)
    with Image.open(tmp_path / "set/rare/0.png") as image:
        grey = image.convert("L")
    for index in range(2):
        grey.point(lambda value, add=index: value + add).save(tmp_path / f"set/rare/{index}.png")
    code, found, _ = findings(check, tmp_path / "set", "--val_fraction", 0.1, "--seed", 3)
    assert code == 0
    assert found["classes"]["common"] == {"train": 54, "val": 6}
    assert any("54 times as many images of 'common' as of 'rare'" in warning for warning in found["warnings"])
    assert any("are grey" in warning for warning in found["warnings"])


def test_options_that_cannot_be(check, class_folders):
    code, _, err = check(class_folders, "--val_fraction", 2, "--seed", -1)
    assert code == 2
    assert "val_fraction = 2.0" in err
    assert "seed = -1" in err


def test_statistics_are_those_of_all_pixels():
    import torch

    generator = np.random.default_rng(0)
    images = [
        generator.integers(0, 256, (3, h, w), dtype=np.uint8) for h, w in ((5, 7), (64, 64), (1, 1), (1100, 1000))
    ]
    stats = {str(number): RgbStats().measure(torch.from_numpy(image)) for number, image in enumerate(images)}
    statistics = RgbStats().summarise(list(stats), Examined([], {}, stats, {}, {}))
    pixels = np.concatenate([image.reshape(3, -1) for image in images], axis=1) / 255
    np.testing.assert_allclose(statistics.mean, pixels.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(statistics.std, pixels.std(axis=1), rtol=1e-5)
    assert statistics.sizes == {(7, 5): 1, (64, 64): 1, (1, 1): 1, (1000, 1100): 1}
