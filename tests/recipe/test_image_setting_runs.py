"""Samplers, growing images and named augmentations in real training processes, also over an interruption."""

import os
import signal
import subprocess
import sys
from collections import Counter

import pytest
import torch
from conftest import REPOSITORY, environment, train_command, write_image
from lives import Life, none_left
from PIL import Image

from sat_vg.backbone_finetuning.data.loading.sampling import BatchPlan, class_balanced
from sat_vg.backbone_finetuning.data.sources.splits import load_class_folders

pytestmark = pytest.mark.recipe


@pytest.fixture
def uneven_folders(tmp_path):
    """train/ and val/ with two classes, of which one has a quarter of the other's images."""
    for name, colour, count in (("sea", (20, 60, 150), 20), ("town", (170, 160, 150), 5)):
        for index in range(count):
            write_image(tmp_path / "uneven/train" / name / f"{index}.png", colour, index)
        for index in range(4):
            write_image(tmp_path / "uneven/val" / name / f"{index}.png", colour, 100 + index)
    return tmp_path / "uneven"


def interrupted(folder, options, tmp_path, after_lines):
    """Run the command in a process, and send it Ctrl-C once its log has so many lines."""
    metrics = folder / "logs/metrics.jsonl"
    lives = [Life(train_command(folder, *options), folder, environment(tmp_path), is_fresh=False)]
    with none_left(lives):
        life = lives[0]
        assert life.until(lambda: metrics.exists() and metrics.read_text().count("\n") >= after_lines), life.err
        os.killpg(life.process.pid, signal.SIGINT)
        assert life.wait(100) == 130, (life.out, life.err)


SMALL = ("--backbone", "shufflenet_v2_x0_5")
SAMPLERS = ["class_balanced", pytest.param("weighted", marks=pytest.mark.slow)]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_interrupted_run_ends_in_the_same_bits(sampler, uneven_folders, train_here, tmp_path):
    options = (
        "--dataset_path", uneven_folders, "--sampler", sampler, "--augmentation", "randaugment", "--num_epochs", 6,
        "--train_image_size", "24,32", "--early_stopping_patience", 0, "--num_threads", 1, "--log_every", 1, *SMALL,
    )  # fmt: skip
    whole = train_here(*options, folder="whole")
    assert whole.code == 0, whole.err
    assert "training images: 24 pixels for 3 epochs, then 32 pixels for 3 epochs" in whole.out
    # Five steps and a line for the epoch's end: within the second epoch, long before the images grow.
    interrupted(tmp_path / "cut", options, tmp_path, after_lines=8)
    resumed = train_here(*options, folder="cut")
    assert resumed.code == 0, resumed.err
    assert "going on with" in resumed.out
    states = [torch.load(run.folder / "ckpt/last.pt", weights_only=True)["network"] for run in (whole, resumed)]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    losses = [[line["train_loss"] for line in run.epochs] for run in (whole, resumed)]
    assert losses[0] == losses[1]
    if sampler == "class_balanced":
        split = load_class_folders(uneven_folders).train
        plan = BatchPlan(len(split), 6, 0, class_balanced(split))
        counts = [Counter(split.labels[place] for place in batch) for batch in plan.batches(1)]
        assert all(abs(count[0] - count[1]) <= 1 for count in counts)


def test_a_resume_with_other_images_is_refused(class_folders, train_here):
    options = ("--dataset_path", class_folders, "--num_epochs", 1, *SMALL)
    first = train_here(*options, "--augmentation", "basic")
    assert first.code == 0, first.err
    again = train_here(*options, "--augmentation", "advanced")
    assert again.code == 2
    assert "augmentation: the run has 'basic', now 'advanced'" in again.err


def test_no_augmentation_has_two_names(class_folders, train_here):
    options = ("--dataset_path", class_folders, "--num_epochs", 1, "--num_threads", 1, *SMALL)
    by_name = train_here(*options, "--augmentation", "none", folder="by_name")
    by_switch = train_here(*options, "--use_augmentation", "false", folder="by_switch")
    assert by_name.code == by_switch.code == 0, by_name.err + by_switch.err
    assert [line["train_loss"] for line in by_name.epochs] == [line["train_loss"] for line in by_switch.epochs]


def test_what_a_backbone_cannot_take_is_said_before_anything_is_trained(class_folders, train_here):
    run = train_here(
        "--dataset_path", class_folders, "--backbone", "vit_b_32", "--image_size", 64, "--train_image_size", "48,64"
    )
    assert run.code == 2
    assert "train_image_size = [48, 64]: vit_b_32" in run.err
    assert "Traceback" not in run.err
    assert not run.best_model.exists()


@pytest.mark.slow
def test_the_script_that_draws_every_augmentation(class_folders, tmp_path):
    images = sorted((class_folders / "train/sea").iterdir())[:2]
    done = subprocess.run(
        [sys.executable, REPOSITORY / "tests/bench/augmentation.py", "--images", *images, "--out", "all.png",
         "--size", "32", "--columns", "3", "--colours", "64"],
        cwd=tmp_path, capture_output=True, text=True, env=environment(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "all.png") as picture:
        assert picture.width > 200
