"""Trainings that begin with a file of weights, and how the commands tell names, folders and labels apart."""

import pytest
import torch
from conftest import TINY, write_image

from sat_vg.backbone_finetuning.commands.check.cli import main as check
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel

COMPOSED, DECOMPOSED = "\u00e9t\u00e9", "e\u0301te\u0301"


def test_a_run_begins_where_another_ended_head_included(train_here, class_folders):
    first = train_here("--dataset_path", class_folders, *TINY, "--num_epochs", 1)
    assert first.code == 0, first.err
    start = ("--dataset_path", class_folders, "--pretrained", "true", "--weights", first.best_model)
    again = train_here(*start, *TINY, "--num_epochs", 1, "--learning_rate", 1e-12, "--min_lr", 0, folder="again")
    assert again.code == 0, again.err
    assert "the head is kept, as the 3 classes are the same" in again.out
    one, two = (FineTuneModel.load_checkpoint(run.best_model).network.state_dict() for run in (first, again))
    assert all(torch.allclose(value, two[name], atol=1e-6) for name, value in one.items())
    other = train_here(*start, "--backbone", "resnet18", "--dry_run", folder="other")
    assert other.code == 2
    assert "the file holds a squeezenet1_1, and backbone = 'resnet18'" in other.err


def test_weights_that_were_trained_on_what_is_val_now_are_warned_of(train_here, class_folders, tmp_path):
    model = FineTuneModel("squeezenet1_1", 3, pretrained=False, image_size=32)
    drawn = class_folders / "train"  # without a val of its own
    for images, trained_with, warned in (
        (
            drawn,
            {"dataset_path": f"{drawn}/../train", "seed": 3},
            "with seed = 3, here it is 0: they were trained on",
        ),
        (drawn, {"dataset_path": str(drawn), "split": "spatial"}, "with split = 'spatial', here it is 'random'"),
        (drawn, {"dataset_path": str(drawn)}, ""),
        (drawn, {"dataset_path": "elsewhere", "seed": 3}, ""),
        (class_folders, {"dataset_path": str(class_folders), "seed": 3}, ""),
        (drawn, {}, ""),
    ):
        model.save_checkpoint(tmp_path / "w.pt", config=trained_with)
        found = train_here(
            "--dataset_path", images, *TINY, "--pretrained", "true", "--weights", tmp_path / "w.pt", "--dry_run"
        )
        assert found.code == 0, found.err
        line = next((one for one in found.out.splitlines() if "warning: the starting weights" in one), "")
        assert (warned in line) if warned else not line


def test_no_phase_brings_the_learning_rate_below_min_lr(train_here, class_folders):
    first = train_here("--dataset_path", class_folders, *TINY, "--num_epochs", 1)
    assert first.code == 0, first.err
    tuned = train_here(
        "--dataset_path", class_folders, *TINY, "--pretrained", "true", "--weights", first.best_model,
        "--strategy", "lp_ft", "--probe_solver", "sgd", "--num_epochs", 4, "--warmup_epochs", 0,
        "--learning_rate", 1e-4, "--min_lr", 6e-5, "--early_stopping_patience", 0, "--log_every", 1, folder="tuned",
    )  # fmt: skip
    assert tuned.code == 0, tuned.err
    assert "full for 3 epochs" in tuned.out
    assert "at 0.3 of the learning rate" in tuned.out  # 3e-5 without a floor
    rates = [line["learning_rate"] for line in tuned.lines]  # of steps and epochs
    assert min(rates) >= 6e-5, rates


def test_a_part_of_the_weights_only_where_that_is_meant(train_here, class_folders, tmp_path):
    state = FineTuneModel("squeezenet1_1", 3, pretrained=False, image_size=32).network.state_dict()
    torch.save({name: value for name, value in state.items() if "features.12" not in name}, tmp_path / "w.pth")
    start = (
        "--dataset_path",
        class_folders,
        *TINY,
        "--pretrained",
        "true",
        "--weights",
        tmp_path / "w.pth",
        "--dry_run",
    )
    refused = train_here(*start)
    assert refused.code == 2
    assert "6 of the 50 tensors of squeezenet1_1 are missing" in refused.err
    allowed = train_here(*start, "--allow_missing", "true")
    assert allowed.code == 0, allowed.err
    assert "missing features.12.squeeze.weight" in allowed.out


def test_a_run_goes_on_where_names_took_the_other_form_of_unicode(train_here, class_folders):
    for split in ("train", "val"):
        (class_folders / split / "sea").rename(class_folders / split / COMPOSED)
    arguments = ("--dataset_path", class_folders, *TINY, "--num_epochs", 1)
    assert train_here(*arguments).code == 0
    for split in ("train", "val"):
        (class_folders / split / COMPOSED).rename(class_folders / split / DECOMPOSED)
    again = train_here(*arguments)
    assert again.code == 0, again.err
    assert "has finished" in again.out


@pytest.mark.parametrize("command", ["check", "train"])
def test_other_separators_are_warned_of_and_read(train_here, tmp_path, capfd, monkeypatch, command):
    monkeypatch.setenv("SAT_VG_CACHE", str(tmp_path / "cache"))
    rows = ["path,labels"]
    for index in range(24):
        write_image(tmp_path / f"{index}.png", (10 * index, 90, 120), index)
        rows.append(f"{index}.png,{('sea', 'sea town', 'town')[index % 3]}")
    (tmp_path / "images.csv").write_text("\n".join(rows))

    def output(*more: str) -> str:
        if command == "check":
            check([str(tmp_path / "images.csv"), *more])
            return capfd.readouterr().out
        return train_here("--dataset_path", tmp_path / "images.csv", *TINY, "--dry_run", *more).out

    plain, told = output(), output("--label_separator", " ")
    assert "warning: table " in plain
    assert "8 cells hold what looks like several classes with ' ' between, such as 'sea town'" in plain
    assert "24 images in 3 classes" in plain
    assert "24 images in 2 classes" in told
    assert "several classes with" not in told
