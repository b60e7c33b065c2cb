"""Weights in shards: the same run as by one process, whichever way it is gone on with, in the same files."""

import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_classes
from jobs import PLAIN, lines_of, of_ranks, run_many, started, state_of

from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel

pytestmark = [pytest.mark.recipe, pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")]

SETTINGS = {**PLAIN, "save_frequency": 100, "num_epochs": 3}
RUNS: dict[str, dict[str, Any]] = {
    "full": {"mixup_alpha": 0.4, "ema_decay": 0.9, "micro_batch_size": 2, "gradient_clip": 0.5},
    # Three batches of validation images, so that one process has fewer; what is frozen changes twice.
    "progressive": {"strategy": "progressive", "batch_size": 4, "cutmix_alpha": 1.0, "dropout": 0.0},
    # One batch of validation images, so that one process has none.
    "probe": {"strategy": "lp_ft", "probe_solver": "sgd", "wise_ft": True, "ema_decay": 0.9, "batch_size": 12},
    "momentum": {"optimizer": "sgd", "train_image_size": (24, 32), "num_epochs": 2, "learning_rate": 1e-4},
    "vit": {"backbone": "timm:vit_tiny_patch16_224", "num_epochs": 1},
}
# In the same memory format, and with more than a few values a channel: batch norm makes much of rounding else.
NORM = {"backbone": "shufflenet_v2_x0_5", "num_epochs": 1, "image_size": 64, "batch_size": 12, "channels_last": False}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("shards") / "images")


@pytest.fixture
def start(tmp_path: Path, images: Path):
    with started(tmp_path, images) as run:
        yield run


@pytest.fixture(scope="module")
def folders(images: Path) -> dict[int, Path]:
    """All runs, by one process and in the shards of two; batch norm's by two with and without shards."""
    found = {}
    for count in (1, 2):
        runs = {name: {**more, "shard_weights": count > 1} for name, more in RUNS.items()}
        if count > 1:
            runs |= {f"norm_{sharded}": {**NORM, "shard_weights": sharded} for sharded in (False, True)}
        runs = {name: {**SETTINGS, **more, "dataset_path": str(images)} for name, more in runs.items()}
        found[count] = run_many(images.parent / f"of_{count}", count, runs)
    return found


def assert_same_run(first: Path, second: Path) -> None:
    """The same record and the same files, up to rounding."""
    one, two = lines_of(first), lines_of(second)
    assert [(line["step"], line["phase"]) for line in one] == [(line["step"], line["phase"]) for line in two]
    for expected, found in zip(one, two, strict=True):
        for key in {"train_loss", "val_loss"} & set(expected):
            assert found[key] == pytest.approx(expected[key], rel=1e-5), (key, expected["step"])
        for key in {"gradient_norm"} & set(expected):
            assert found[key] == pytest.approx(expected[key], rel=1e-3), (key, expected["step"])
        for key in {"val_accuracy", "macro_f1", "wise_ft_share", "learning_rate"} & set(expected):
            assert found[key] == pytest.approx(expected[key], rel=1e-9), (key, expected["step"])
    states = [state_of(folder) for folder in (first, second)]
    assert states[0].keys() == states[1].keys()
    for part in ("network", "average", "origin"):
        assert_same_tensors(*(state[part] for state in states), part)
    moments = [state["optimizer"]["state"] for state in states]
    assert moments[0].keys() == moments[1].keys()
    for place, entries in moments[0].items():
        assert_same_tensors(entries, moments[1][place], f"optimizer {place}")


def assert_same_tensors(expected: dict, found: dict, part: str) -> None:
    assert expected.keys() == found.keys(), part
    for name, tensor in expected.items():
        assert type(found[name]) is type(tensor), f"{part} {name}"
        if isinstance(tensor, torch.Tensor):
            assert found[name].device.type == "cpu"
            torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-5, msg=f"{part} {name}")


@pytest.mark.parametrize("name", RUNS)
def test_a_run_in_shards_is_the_run_of_one_process(folders, name):
    assert_same_run(folders[1] / name, folders[2] / name)
    best = [FineTuneModel.load_checkpoint(folders[count] / name / "ckpt/best_model.pt") for count in (1, 2)]
    for (key, expected), found in zip(best[0].network.state_dict().items(), best[1].network.state_dict().values(),
                                      strict=True):  # fmt: skip
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, msg=key)
    assert best[1].get_feature_extractor()(torch.zeros(1, 3, 64, 64))


def test_batch_norm_has_the_statistics_that_copies_of_the_model_have(folders):
    copies, shards = (folders[2] / f"norm_{sharded}" for sharded in (False, True))
    losses = [[line["train_loss"] for line in lines_of(folder)] for folder in (copies, shards)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    expected, found = (state_of(folder)["network"] for folder in (copies, shards))
    moved = [name for name in expected if "running" in name]
    assert len(moved) > 100
    for name in moved:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("name", ["full", "vit"])
def test_each_process_holds_its_part_alone(folders, name):
    (whole,), parts = of_ranks(folders[1], name), of_ranks(folders[2], name)
    assert len(parts) == 2
    for kind in ("weights", "optimizer"):
        assert sum(part[kind] for part in parts) == whole[kind] > 0
        assert max(part[kind] for part in parts) < 0.52 * whole[kind]
    assert parts[0]["units"] >= 8, "one by one, and not the whole model at once"


def test_all_processes_stop_a_validation_together(folders):
    """Where only one of them was asked to, also one that has fewer batches."""
    for name, batches in {"full": (1, 1), "progressive": (2, 1), "probe": (1, 0)}.items():
        found = of_ranks(folders[2], name)
        assert tuple(line["batches"] for line in found) == batches
        assert [line["stopped"] for line in found] == [True, True]


def test_what_is_trained_changes_under_way(folders):
    phases = Counter(line["phase"] for line in lines_of(folders[2] / "progressive") if "val_loss" in line)
    assert len(phases) == 3
    start = FineTuneModel("squeezenet1_1", 3, pretrained=False, image_size=32).network.state_dict()
    best = FineTuneModel.load_checkpoint(folders[2] / "progressive/ckpt/best_model.pt").network.state_dict()
    assert set(start) == set(best)


def test_in_shards_by_one_process_and_in_shards_again(start, folders):
    """Stopped by a signal each time; with a moving average, and in parts of a batch."""
    settings = [str(word) for name, value in {**SETTINGS, **RUNS["full"]}.items() for word in (f"--{name}", value)]
    for count, until in ((2, 4), (1, 8)):
        job = start("changing", count, *settings, "--shard_weights", str(count > 1).lower())
        job.wait_for_step(until)
        job.process.send_signal(signal.SIGTERM)
        assert job.wait() != 0
        assert "the same command goes on from there" in job.printed
    job = start("changing", 2, *settings, "--shard_weights", "true").finish()
    taken = Counter((line["step"], line["count"]) for line in job.steps)
    assert {count for _, count in taken} == {1, 2}
    assert all(times == count for (_, count), times in taken.items()), "no step was taken twice"
    assert len(taken) == 15
    assert_same_run(folders[1] / "full", job.folder)
    assert "weights in shards" in job.printed and not job.tracebacks


def test_one_process_alone_has_nobody_to_share_with(train_here, class_folders):
    run = train_here("--dataset_path", class_folders, "--shard_weights", "true")
    assert run.code == 2
    assert "torchrun --nproc_per_node 2" in run.err and "Traceback" not in run.err
