"""What a resume may change: whatever leaves the course so far as it is. For all else the refusal names a command."""

import shlex

import pytest
import torch
from conftest import TINY

SMALL = ("--backbone", "custom_cnn", "--learning_rate", 1e-3)
PLATEAU = ("--lr_scheduler", "plateau", "--lr_step_size", 1, "--warmup_epochs", 0)
STEPS = ("--lr_scheduler", "step", "--lr_step_size", 2, "--warmup_epochs", 0.5)


def command_named(text: str) -> list[str]:
    """The arguments of the training command that a message names."""
    (line,) = [
        line for line in text.splitlines() if line.startswith("To train on from its best weights: sat-vg train ")
    ]
    return shlex.split(line.partition("sat-vg train ")[2])


@pytest.mark.parametrize(
    "schedule", [STEPS, ("--lr_scheduler", "plateau", "--lr_step_size", 1, "--warmup_epochs", 0)]
)
def test_a_finished_run_that_is_asked_for_more_epochs_ends_as_one_that_was_asked_at_once(
    train_here, class_folders, schedule
):
    options = (*SMALL, *TINY, *schedule, "--dataset_path", class_folders)
    at_once = train_here(*options, "--num_epochs", 4, folder="at_once")
    first = train_here(*options, "--num_epochs", 2)
    assert first.code == at_once.code == 0, first.err + at_once.err
    longer = train_here(*options, "--num_epochs", 4, "--num_classes", 3)
    assert longer.code == 0, longer.err
    assert [line["val_loss"] for line in longer.epochs] == [line["val_loss"] for line in at_once.epochs]
    ends = [torch.load(run.folder / "ckpt/last.pt", weights_only=True) for run in (longer, at_once)]
    for name, value in ends[1]["network"].items():
        assert torch.equal(ends[0]["network"][name], value), name
    times = {"train_seconds", "recent_losses"}
    assert {k: v for k, v in ends[0]["state"].items() if k not in times} == {
        k: v for k, v in ends[1]["state"].items() if k not in times
    }
    shorter = train_here(*options, "--num_epochs", 3)
    assert shorter.code == 2
    assert "num_epochs: the run has 4, now 3 (it has finished)" in shorter.err


def test_what_means_the_same_is_no_other_setting(train_here, class_folders):
    options = (*SMALL, *TINY, "--dataset_path", class_folders, "--num_epochs", 1)
    assert train_here(*options).code == 0
    named = ("--num_classes", 3, "--strategy", "full", "--weights", "none", "--augmentation", "satellite",
             "--lr_gamma", 0.5, "--momentum", 0.5, "--micro_batch_size", 6, "--val_fraction", 0.3,
             "--early_stopping_patience", 20, "--early_stopping_metric", "val_accuracy")  # fmt: skip
    again = train_here(*options, *named)
    assert again.code == 0, again.err
    assert "has finished" in again.out


def test_a_refusal_names_the_command_that_trains_on(train_here, class_folders, tmp_path):
    options = (*SMALL, *TINY, "--dataset_path", class_folders)
    first = train_here(*options, "--num_epochs", 1)
    assert first.code == 0, first.err
    before = {path.name: path.read_bytes() for path in (first.folder / "ckpt").iterdir()}
    for changed in (("--num_epochs", 3), ("--num_epochs", 1, "--learning_rate", 2e-3)):
        refused = train_here(*options, *changed)
        assert refused.code == 2
        assert f"{changed[-2][2:]}: the run has " in refused.err
        command = command_named(refused.err)
        assert command[command.index("--weights") + 1] == str(first.best_model)
    assert {path.name: path.read_bytes() for path in (first.folder / "ckpt").iterdir()} == before
    finished = train_here(*options, "--num_epochs", 1)
    assert [flag for flag in command_named(finished.out) if flag.startswith("--")] == [
        flag for flag in command if flag.startswith("--")
    ]
    from sat_vg.backbone_finetuning.train import main

    assert main(command) == 0
    assert (tmp_path / "run/ckpt_2/best_model.pt").is_file()
    assert (tmp_path / "run/logs_2/metrics.jsonl").is_file()
