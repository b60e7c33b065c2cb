"""Several real processes: one run, whoever computes it, whatever dies on the way."""

import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from conftest import write_classes
from jobs import Job, batches_of, started

from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel

pytestmark = [pytest.mark.recipe, pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")]

TIMES = {"seconds", "images_per_second"}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("ranks") / "images")


@pytest.fixture
def start(tmp_path: Path, images: Path):
    with started(tmp_path, images) as run:
        yield run


def without_times(lines: list[dict]) -> list[dict]:
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def assert_same_course(one: Job, two: Job) -> None:
    """The same record and the same state, to the bit."""
    assert without_times(one.lines) == without_times(two.lines)
    first, second = one.state, two.state
    for part in ("network", "average"):
        assert first[part].keys() == second[part].keys()
        for name, tensor in first[part].items():
            assert torch.equal(tensor, second[part][name]), name


def test_two_processes_train_as_one_does(start):
    settings = ("--num_epochs", 4, "--learning_rate", "1e-5", "--ema_decay", "0.9")
    alone, both = (start(f"of_{count}", count, *settings).finish() for count in (1, 2))
    assert {line["count"] for line in both.steps} == {2}
    assert batches_of(both.steps) == batches_of(alone.steps)
    assert len(batches_of(alone.steps)) == 20
    losses = [[line["train_loss"] for line in job.lines if "val_loss" not in line] for job in (alone, both)]
    assert len(losses[0]) == len(losses[1]) == 20
    for expected, found in zip(*losses, strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
    last = [job.lines[-1] for job in (alone, both)]
    assert last[0]["val_accuracy"] == last[1]["val_accuracy"]
    assert last[1]["val_loss"] == pytest.approx(last[0]["val_loss"], rel=1e-5)
    # Written once: the same lines, files and words as by one process, but for the one that names the processes.
    assert [line["step"] for line in both.lines] == [line["step"] for line in alone.lines]
    names = [sorted(path.name for path in (job.folder / "ckpt").iterdir()) for job in (alone, both)]
    assert names[0] == names[1] and "best_model.pt" in names[0]
    assert len(list((both.folder / "logs").glob("events.out.tfevents.*"))) == 1
    assert Counter(both.printed.splitlines())["phases: full for 4 epochs, 0.72 M trained"] == 1
    assert "2 processes" in both.printed and both.printed.count("best model") == 1
    found = FineTuneModel.load_checkpoint(both.folder / "ckpt/best_model.pt").get_feature_extractor()
    assert found(torch.zeros(1, 3, 64, 64))


def test_a_rank_that_is_killed_is_started_again_and_changes_nothing(start):
    settings = ("--num_epochs", 6, "--save_every_steps", 4, "--save_frequency", 100, "--learning_rate", "1e-3")
    settings = (*settings, "--dropout", "0.3", "--ema_decay", "0.9")
    undisturbed = start("undisturbed", 2, *settings).finish()
    job = start("killed", 2, *settings, restarts=3)
    for step, rank in ((6, 1), (15, 0)):
        job.wait_for_step(step)
        pids = [line["pid"] for line in job.steps if line["rank"] == rank]
        os.kill(pids[-1], signal.SIGKILL)
    job.finish()
    assert len({line["pid"] for line in job.steps}) == 6, "two processes, started three times"
    assert "another process of this training ended" in job.printed
    assert not job.tracebacks
    assert_same_course(undisturbed, job)
    assert batches_of(job.steps) == batches_of(undisturbed.steps)


def test_two_ranks_one_and_two_again_see_the_images_in_the_same_order(start):
    settings = ("--num_epochs", 6, "--save_frequency", 100, "--learning_rate", "1e-4")
    whole = start("whole", 1, *settings).finish()
    for count, until in ((2, 8), (1, 17)):
        job = start("changing", count, *settings)
        job.wait_for_step(until)
        job.process.send_signal(signal.SIGTERM)
        assert job.wait() != 0
        assert "the same command goes on from there" in job.printed
    job = start("changing", 2, *settings).finish()
    taken = Counter((line["step"], line["count"]) for line in job.steps)
    assert {count for _, count in taken} == {1, 2}
    assert all(times == count for (_, count), times in taken.items()), "no step was taken twice"
    assert len(taken) == 30
    assert batches_of(job.steps) == batches_of(whole.steps)
    assert [line["step"] for line in job.lines] == [line["step"] for line in whole.lines]
    assert job.lines[-1]["val_accuracy"] == whole.lines[-1]["val_accuracy"]


def test_an_error_of_rank_0_ends_the_job_with_its_message(start, tmp_path):
    began = time.monotonic()
    job = start("wrong", 2, "--resume", tmp_path / "no_such.pt")
    assert job.wait() != 0
    assert time.monotonic() - began < 60
    assert job.printed.count("no_such.pt") >= 1 and "error: rank 0: " in job.printed
    assert not job.tracebacks
