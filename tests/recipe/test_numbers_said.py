"""The numbers of images that commands print are those they work with, after copies moved and others were left out."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import COLOURS, TINY, write_image

from sat_vg.backbone_finetuning.commands.evaluate import cli as evaluate
from sat_vg.backbone_finetuning.data.sources.splits import load_class_folders


@pytest.fixture
def with_copies(tmp_path: Path) -> Path:
    """One folder of class folders, in which two of train's images are copies of one of val's, and one is damaged."""
    root = tmp_path / "images"
    for number, (name, colour) in enumerate(COLOURS.items()):
        for index in range(10):
            write_image(root / name / f"{index}.png", colour, 100 * number + index)
    drawn = load_class_folders(root, val_fraction=0.2, seed=0)
    of_class = [path for path in drawn.train.paths if Path(path).parent == Path(drawn.val.paths[0]).parent]
    first, second, damaged = of_class[-3:]
    shutil.copy(drawn.val.paths[0], first)
    shutil.copy(drawn.val.paths[0], second)
    Path(damaged).write_bytes(b"no image")
    return root


def numbers(out: str) -> list[int]:
    """Of images, train and val in the line that begins with ``data:``, of which there is one."""
    (line,) = [line for line in out.splitlines() if line.startswith("data: ")]
    sizes = line.rpartition("seed 0")[2]
    return [int(line.split()[1]), *(int(part.split()[0]) for part in sizes.strip(": ").split(";")[0].split(", "))]


LENIENT = ("--on_bad_image", "skip", "--max_bad_fraction", 0.5)


def test_train_and_evaluate(train_here, with_copies, tmp_path, capfd):
    told = train_here("--dataset_path", with_copies, *LENIENT, "--dry_run").out
    run = train_here("--dataset_path", with_copies, *LENIENT, "--num_epochs", 1, *TINY)
    assert run.code == 0, run.err
    total, train, val = numbers(run.out)
    assert " changed sides" in run.out
    assert numbers(told) == [total, train, val]
    assert total == train + val == 29
    assert "; 1 more left out" in run.out
    state = torch.load(run.folder / "ckpt/last.pt", weights_only=True)
    assert state["state"]["finished"]
    capfd.readouterr()
    code = evaluate.main([str(run.best_model), "--out", str(tmp_path / "evaluation")])
    out, err = capfd.readouterr()
    assert code == 0, err
    assert numbers(out) == [total, train, val]
    assert json.loads((tmp_path / "evaluation/evaluation.json").read_text())["images"] == val


def test_shard(shard_command, with_copies, tmp_path):
    code, out, err = shard_command(with_copies, "--out", tmp_path / "shards", *LENIENT)
    assert code == 0, err
    total, train, val = numbers(out)
    assert total == train + val == 29
    written = [shard["samples"] for shard in json.loads((tmp_path / "shards/shards.json").read_text())["shards"]]
    assert sum(map(len, written)) == total
