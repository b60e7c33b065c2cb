"""What is decided on the way is the same on every rank, and the same as by one process."""

import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from conftest import write_classes
from jobs import PLAIN, lines_of, of_ranks, run_many, state_of

from sat_vg.backbone_finetuning.commands.shard.cli import main as write_shards

pytestmark = [pytest.mark.recipe, pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")]

RUNS = {
    "probe": {"strategy": "linear_probe"},
    "features": {"strategy": "last_layers", "num_epochs": 3, "use_augmentation": False},
    "progressive": {"strategy": "progressive", "num_epochs": 4, "micro_batch_size": 2, "cutmix_alpha": 1.0},
    "mixed": {"num_epochs": 2, "wise_ft": True, "sampler": "class_balanced", "focal_gamma": 2.0},
    "stopping": {"num_epochs": 9, "early_stopping_patience": 2, "early_stopping_metric": "val_loss",
                 "early_stopping_min_delta": 10.0, "lr_scheduler": "plateau", "lr_step_size": 1},
    "several": {"num_epochs": 2, "sampler": "weighted"},
    "shards": {"num_epochs": 2, "shard_window": 2},
    "norm": {"backbone": "shufflenet_v2_x0_5", "num_epochs": 2, "ema_decay": 0.9, "learning_rate": 1e-3},
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """All runs, by one process and by two."""
    root = tmp_path_factory.mktemp("decisions")
    images = write_classes(root / "images", val=5)
    rows = ["path,labels,split"]
    for path in sorted(images.rglob("*.png")):
        more = "|bright" if int(path.stem) % 3 == 0 else ""
        rows.append(f"{path.relative_to(images)},{path.parent.name}{more},{path.parts[-3]}")
    (images / "table.csv").write_text("\n".join(rows) + "\n")
    pytest.importorskip("webdataset", reason="webdataset is not installed, so there are no shards to read")
    assert write_shards([str(images), "--out", str(root / "shards"), "--images_per_shard", "5"]) == 0
    places = {"several": images / "table.csv", "shards": root / "shards"}
    runs = {name: {**PLAIN, "dataset_path": str(places.get(name, images)), **more} for name, more in RUNS.items()}
    return {count: run_many(root / f"of_{count}", count, runs) for count in (1, 2)}


@pytest.mark.parametrize("name", RUNS)
def test_all_ranks_end_with_the_same_state(folders, name):
    first, second = of_ranks(folders[2], name)
    assert (first["rank"], second["rank"]) == (0, 1)
    assert (first["hash"], first["epochs"]) == (second["hash"], second["epochs"])


@pytest.mark.parametrize("name", [name for name in RUNS if name != "norm"])
def test_two_processes_come_to_what_one_comes_to(folders, name):
    one, two = (lines_of(folders[count] / name) for count in (1, 2))
    assert [line["step"] for line in one] == [line["step"] for line in two]
    assert [line["phase"] for line in one] == [line["phase"] for line in two]
    for expected, found in zip(one, two, strict=True):
        for key in {"train_loss", "val_loss"} & set(expected):
            assert found[key] == pytest.approx(expected[key], rel=2e-5), (key, expected["step"])
        for key in {"val_accuracy", "val_map", "wise_ft_share", "learning_rate"} & set(expected):
            assert found[key] == pytest.approx(expected[key], rel=1e-9), (key, expected["step"])
    weights = [state_of(folders[count] / name)["network"] for count in (1, 2)]
    for key, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][key], tensor, rtol=1e-3, atol=1e-5, msg=key)


def test_the_runs_did_what_they_are_for(folders):
    printed = (folders[2] / "output.txt").read_text()
    assert Counter(printed.splitlines())["stopped early: no better val_loss for 2 epochs"] == 1
    assert "frozen stages run once, not 3 times" in printed
    assert len({line["phase"] for line in lines_of(folders[2] / "progressive")}) == 4
    assert lines_of(folders[2] / "stopping")[-1]["epoch"] == 3
    assert "val_map" in lines_of(folders[2] / "several")[-1]
