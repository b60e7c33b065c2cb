"""What is decided on the way is the same on every rank, and the same as by one process."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from conftest import COLOURS, environment, write_image

from sat_vg.backbone_finetuning.commands.shard.cli import main as write_shards

pytestmark = [pytest.mark.recipe, pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")]

DRIVER = Path(__file__).with_name("many_runs.py")
# No batch norm and fp32: one process and two differ by rounding alone, and by a small rate this stays small.
PLAIN = {
    "backbone": "squeezenet1_1", "pretrained": False, "image_size": 32, "batch_size": 6, "mixed_precision": False,
    "warmup_epochs": 0.0, "learning_rate": 1e-5, "num_workers": 0, "log_every": 1, "early_stopping_patience": 0,
}  # fmt: skip
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
    rows = ["path,labels,split"]
    for number, (name, colour) in enumerate(COLOURS.items()):
        for split, count, first in (("train", 9, 0), ("val", 5, 50)):
            for index in range(count):
                path = root / "images" / split / name / f"{index}.png"
                write_image(path, colour, 100 * number + first + index)
                more = "|bright" if index % 3 == 0 else ""
                rows.append(f"{path.relative_to(root / 'images')},{name}{more},{split}")
    (root / "images/table.csv").write_text("\n".join(rows) + "\n")
    pytest.importorskip("webdataset", reason="webdataset is not installed, so there are no shards to read")
    assert write_shards([str(root / "images"), "--out", str(root / "shards"), "--images_per_shard", "5"]) == 0
    found = {}
    for count in (1, 2):
        found[count] = folder = root / f"of_{count}"
        folder.mkdir()
        settings = {name: {**PLAIN, "dataset_path": str(root / "images"), **more} for name, more in RUNS.items()}
        settings["several"]["dataset_path"] = str(root / "images/table.csv")
        settings["shards"]["dataset_path"] = str(root / "shards")
        (folder / "runs.json").write_text(json.dumps(settings))
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
        done = subprocess.run(
            [*launcher, str(DRIVER), "runs.json"],
            cwd=folder,
            env=environment(folder),  # with a cache of its own: features are built by as many processes
            capture_output=True,
            text=True,
            timeout=500,
        )
        (folder / "output.txt").write_text(done.stdout)
        assert done.returncode == 0, done.stdout + done.stderr
    return found


def lines_of(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / name / "logs/metrics.jsonl").read_text().splitlines()]


def weights_of(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return torch.load(folder / name / "ckpt/last.pt", weights_only=True)["network"]


@pytest.mark.parametrize("name", RUNS)
def test_all_ranks_end_with_the_same_state(folders, name):
    lines = [json.loads(line) for line in (folders[2] / "states.jsonl").read_text().splitlines()]
    mine = {line["rank"]: (line["hash"], line["epochs"]) for line in lines if line["run"] == name}
    assert set(mine) == {0, 1}
    assert mine[0] == mine[1]


@pytest.mark.parametrize("name", [name for name in RUNS if name != "norm"])
def test_two_processes_come_to_what_one_comes_to(folders, name):
    one, two = (lines_of(folders[count], name) for count in (1, 2))
    assert [line["step"] for line in one] == [line["step"] for line in two]
    assert [line["phase"] for line in one] == [line["phase"] for line in two]
    for expected, found in zip(one, two, strict=True):
        for key in {"train_loss", "val_loss"} & set(expected):
            assert found[key] == pytest.approx(expected[key], rel=2e-5), (key, expected["step"])
        for key in {"val_accuracy", "val_map", "wise_ft_share", "learning_rate"} & set(expected):
            assert found[key] == pytest.approx(expected[key], rel=1e-9), (key, expected["step"])
    weights = [weights_of(folders[count], name) for count in (1, 2)]
    for key, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][key], tensor, rtol=1e-3, atol=1e-5, msg=key)


def test_the_runs_did_what_they_are_for(folders):
    printed = (folders[2] / "output.txt").read_text()
    assert Counter(printed.splitlines())["stopped early: no better val_loss for 2 epochs"] == 1
    assert "frozen stages run once, not 3 times" in printed
    assert len({line["phase"] for line in lines_of(folders[2], "progressive")}) == 4
    assert lines_of(folders[2], "stopping")[-1]["epoch"] == 3
    assert "val_map" in lines_of(folders[2], "several")[-1]
