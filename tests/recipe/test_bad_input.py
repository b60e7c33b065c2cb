"""What is wrong is said before training: the value, the place, the remedy; never a traceback."""

import shutil

import pytest
from conftest import TINY, write_image

pytestmark = pytest.mark.recipe


def refuse(run, *parts, code=2):
    assert run.code == code, (run.out, run.err)
    assert "Traceback" not in run.err
    assert run.err.startswith("error: ")
    for part in parts:
        assert part in run.err, (part, run.err)
    assert not list((run.folder / "ckpt").glob("*"))


def test_unreadable_images(train_here, class_folders):
    broken = class_folders / "train/sea/train_0.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    (class_folders / "val/town/empty.png").touch()
    refuse(train_here("--dataset_path", class_folders), str(broken), "empty.png", "--on_bad_image skip")
    refuse(
        train_here("--dataset_path", class_folders, "--on_bad_image", "skip"),
        "2 of 37", "5.4 %", "--on_bad_image skip:0.055", str(broken),
    )  # fmt: skip
    run = train_here(*TINY, "--dataset_path", class_folders, "--on_bad_image", "skip:0.055")
    assert run.code == 0, run.err
    assert f"left out {broken}" in run.out
    assert "empty.png" in run.out
    listed = (run.folder / "logs/skipped_images.txt").read_text().splitlines()
    assert len(listed) == 2
    assert listed[0].startswith(f"{broken}\tthe JPEG is cut short")


def test_folders_that_cannot_be_used(train_here, class_folders, tmp_path):
    refuse(train_here("--dataset_path", tmp_path / "imagse"), "imagse", "images")
    refuse(train_here("--dataset_path", class_folders / "train/sea"), "sea")
    (class_folders / "val/swamp").mkdir()
    write_image(class_folders / "val/swamp/a.png", (9, 9, 9), 0)
    refuse(train_here("--dataset_path", class_folders), "'swamp'", "train")
    shutil.rmtree(class_folders / "val/swamp")
    for name in ("sea", "town"):
        shutil.rmtree(class_folders / "train" / name)
        shutil.rmtree(class_folders / "val" / name)
    refuse(train_here("--dataset_path", class_folders), "class")


def test_settings_that_cannot_be_used(train_here, class_folders, tmp_path):
    data = ("--dataset_path", class_folders, "--backbone", "resnet18")
    refuse(train_here(*data, "--bacbone", "resnet18"), "did you mean --backbone?")
    refuse(train_here(*data, "--backbone", "resnet19"), "resnet18")
    refuse(train_here(*data, "--batch_size", "0", "--dropout", "2"), "2 problems", "batch_size = 0", "dropout = 2.0")
    refuse(train_here(*data, "--num_classes", "4"), "num_classes = 4", "3 classes")
    refuse(train_here(*data, "--device", "cuda:7"), "cuda:7")
    refuse(train_here(*data, "--device", "xpu"), "xpu")
    refuse(train_here(*data, "--batch_size", "1"), "one image at a time", "batch_size")
    refuse(train_here(*data, "--resume", tmp_path / "no.pt"), "no.pt")
    refuse(train_here(*data, "--pretrained", "true", "--weights", "no.pth"), "no.pth", "IMAGENET1K_V1")
    refuse(
        train_here(*data, "--freeze_early_layers", "true", "--unfreeze_layers", "layer9"), "layer9", "Stages: stem"
    )
    (tmp_path / "file").touch()
    refuse(train_here(*data, "--log_dir", tmp_path / "file/logs"), "cannot be written")


@pytest.mark.parametrize("count", [1, 2, 7])
def test_few_images_and_a_last_batch_of_one(train_here, tmp_path, count):
    for name in ("a", "b"):
        for index in range(count + 1):
            write_image(tmp_path / "few" / name / f"{index}.png", (index * 20, 99, 99), index)
    for backbone, batch_size in (("shufflenet_v2_x0_5", 32), ("mobilenet_v2", 2)):
        run = train_here("--dataset_path", tmp_path / "few", "--backbone", backbone, "--batch_size", batch_size,
                    folder=f"run_{backbone}")  # fmt: skip
        assert run.code == 0, run.err


def test_names_that_would_steer_a_terminal(train_here, class_folders):
    (class_folders / "train/sea").rename(class_folders / "train/\x1b[31msea")
    (class_folders / "val/sea").rename(class_folders / "val/\x1b[31msea")
    run = train_here("--dataset_path", class_folders, "--num_epochs", 1, draws=True)
    assert run.code == 0, run.err
    assert "\x1b" not in run.out + run.err
