"""``sat-vg shard`` and training from what it writes, as users run them: real processes, a real kill."""

import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from conftest import COLOURS, TINY, environment, write_image
from lives import Life, none_left

from sat_vg.backbone_finetuning.commands.check import cli as check
from sat_vg.backbone_finetuning.data.shards.cache import SOURCE

pytestmark = pytest.mark.recipe
pytest.importorskip("webdataset", reason="shards are written with webdataset, which is not installed")

SAME = ("--mixed_precision", "false", "--num_threads", 1, "--cache", "off")


def results_of(run) -> list[dict]:
    """What the lines of a run's record say but for times."""
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in run.lines]


def weights_of(run) -> dict[str, torch.Tensor]:
    return torch.load(run.best_model, weights_only=True)["state_dict"]


def test_folders_to_shards_to_training_is_the_training_from_folders(
    train_here, class_folders, shard_command, tmp_path, capfd
):
    code, out, err = shard_command(class_folders, "--out", "SHARDS", "--images_per_shard", 4)
    assert code == 0, err
    assert re.search(r"train\s+7\s+27", out), out
    assert "sat-vg train --dataset_path SHARDS" in out
    folders = train_here(*TINY, "--dataset_path", class_folders, *SAME, folder="folders")
    shards = train_here(*TINY, "--dataset_path", "SHARDS", *SAME, folder="shards")
    assert folders.code == shards.code == 0, folders.err + shards.err
    assert "36 images in 3 classes (10 shards): 27 train, 9 val" in shards.out
    assert len(results_of(shards)) > 5
    assert results_of(shards) == results_of(folders)
    ours, theirs = weights_of(shards), weights_of(folders)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)

    # The other commands take the shards as well, and a run over them is found finished.
    assert "has finished" in train_here(*TINY, "--dataset_path", "SHARDS", *SAME, folder="shards").out
    capfd.readouterr()
    assert check.main(["SHARDS"]) == 0
    assert "36 images in 3 classes (10 shards)" in capfd.readouterr().out
    from sat_vg.backbone_finetuning.commands.evaluate import cli as evaluate

    assert evaluate.main([str(shards.best_model), "--out", "evaluation"]) == 0
    table = (tmp_path / "evaluation/predictions.csv").read_text()
    assert len(re.findall(r"^val-00000\d\.tar/\d{8}_(field|sea|town)_val_\d\.(jpg|png)", table, re.MULTILINE)) == 9


def test_a_damaged_shard_ends_the_command_before_training(train_here, class_folders, shard_command, tmp_path):
    assert shard_command(class_folders, "--out", "SHARDS", "--images_per_shard", 4)[0] == 0
    code, out, err = shard_command("--check", "SHARDS")
    assert (code, err) == (0, "")
    assert "all 10 shards are as shards.json says" in out
    path = tmp_path / "SHARDS/train-000002.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1500])
    run = train_here(*TINY, "--dataset_path", "SHARDS")
    assert run.code == 2
    assert f"shard 'train-000002.tar' has {len(whole) - 1500} bytes, its index says {len(whole)}" in run.err
    assert not run.folder.exists()
    path.write_bytes(whole[:3000] + b"x" + whole[3001:])
    code, _, err = shard_command("--check", "SHARDS")
    assert code == 2
    assert "1 of 10 shards are not as shards.json says" in err
    assert "'train-000002.tar' has other bytes than its index says" in err
    (tmp_path / "SHARDS/shards.json").unlink()
    path.write_bytes(whole)
    run = train_here(*TINY, "--dataset_path", "SHARDS")
    assert run.code == 2
    assert "sat-vg shard --index DIR" in run.err
    assert shard_command("--index", "SHARDS")[0] == 0
    assert train_here(*TINY, "--dataset_path", "SHARDS", "--num_epochs", 1).code == 0


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_training_through_a_pipe_and_a_small_disk(
    train_here, class_folders, shard_command, tmp_path, monkeypatch, workers
):
    assert shard_command(class_folders, "--out", "FAR", "--images_per_shard", 3)[0] == 0
    (tmp_path / "SHARDS").mkdir()
    shutil.copy(tmp_path / "FAR/shards.json", tmp_path / "SHARDS")
    sizes = sorted(path.stat().st_size for path in (tmp_path / "FAR").glob("*.tar"))
    gib = sum(sizes[-5:]) / 2**30
    options = (*TINY, "--dataset_path", "SHARDS", *SAME, "--shard_window", 2, "--num_workers", workers)
    whole = train_here(*options, "--dataset_path", "FAR", folder="whole")
    assert whole.code == 0, whole.err
    monkeypatch.setenv(SOURCE, "pipe:echo {name} >> fetched.txt; cat FAR/{name}")
    run = train_here(*options, "--cache_gib", f"{gib:.9f}")
    assert run.code == 0, run.err
    assert "(12 shards, fetched by a command)" in run.out
    assert results_of(run) == results_of(whole)
    # The check and each epoch need every shard once. A window and a shard more are there, so hardly one comes twice;
    # workers may be busy with two windows at a time.
    needed, fetched = 12 * (len(run.epochs) + 1), len((tmp_path / "fetched.txt").read_text().split())
    assert 12 <= fetched <= needed + 2 + 6 * workers
    kept = sum(path.stat().st_size for path in (tmp_path / "cache/shards").rglob("shard.tar"))
    assert 0 < kept <= gib * 2**30 + 1

    monkeypatch.setenv(SOURCE, "pipe:echo no {name} >&2; exit 3")
    shutil.rmtree(tmp_path / "cache")
    broken = train_here(*options, "--cache_gib", f"{gib:.9f}", folder="broken")
    assert broken.code == 2
    assert "exit code 3 and said 'no train-000000.tar'" in broken.err


def test_a_killed_writer_goes_on_where_it_was(shard_command, tmp_path, train_here):
    for number in range(90):
        name = list(COLOURS)[number % 3]
        write_image(tmp_path / "images" / name / f"{number:02d}.png", COLOURS[name], number, size=12)
    flags = ("images", "--images_per_shard", 1, "--val_fraction", 0.1)
    assert shard_command(*flags, "--out", "whole")[0] == 0

    started = [sys.executable, "-m", "sat_vg", "shard", *map(str, flags), "--out", "cut"]
    lives = [Life(started, tmp_path, environment(tmp_path), is_fresh=False)]
    with none_left(lives):
        life = lives[0]
        assert life.until(lambda: len(list((tmp_path / "cut").glob("*.tar"))) >= 5, every=0.001), life.err
        life.process.kill()
        assert life.wait() == -signal.SIGKILL
    there = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cut").glob("*.tar")}
    assert 5 <= len(there) < 90, "it was too quick to be killed"
    run = train_here(*TINY, "--dataset_path", "cut")
    assert run.code == 2
    assert "writing has not ended; run the same sat-vg shard command again" in run.err
    code, _, err = shard_command("images", "--out", "cut", "--images_per_shard", 2)
    assert code == 2
    assert "of another writing, which has not ended" in err

    os.truncate(tmp_path / "cut/train-000001.tar", 100)  # as a power cut might leave it
    del there["train-000001.tar"]
    code, out, err = shard_command(*flags, "--out", "cut")
    assert code == 0, err
    assert "going on in cut" in out
    assert {name: (tmp_path / "cut" / name).stat().st_mtime_ns for name in there} == there
    ours, theirs = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("cut", "whole")
    )
    assert len(theirs) == 91
    assert ours == theirs  # no temporary file, no lock, the same bytes

    code, out, _ = shard_command(*flags, "--out", "cut")
    assert (code, "nothing was written" in out) == (0, True)
    write_image(tmp_path / "images/sea/new.png", COLOURS["sea"], 99, size=12)
    code, _, err = shard_command(*flags, "--out", "cut")
    assert code == 2
    assert "holds shards of other images" in err


def test_what_the_command_refuses(shard_command, class_folders, tmp_path):
    def refused(*arguments: object) -> str:
        code, _, err = shard_command(*arguments)
        assert code == 2, err
        return err

    assert "lies in the data set" in refused(class_folders, "--out", class_folders / "shards")
    assert "--images_per_shard 0: must be a whole number of 1 or more" in refused(
        class_folders, "--out", "o", "--images_per_shard", 0
    )
    assert "--shard_mib -1.0: must be a number above 0" in refused(class_folders, "--out", "o", "--shard_mib", -1)
    assert "val_fraction = 2.0" in refused(class_folders, "--out", "o", "--val_fraction", 2)
    (class_folders / "train/sea/broken.jpg").write_bytes(b"no image")
    assert "1 of 37 images cannot be read" in refused(class_folders, "--out", "o")
    assert not (tmp_path / "o").exists()
    code, out, _ = shard_command(class_folders, "--out", "o", "--on_bad_image", "skip", "--max_bad_fraction", 0.1)
    assert (code, "left out" in out) == (0, True)
    (tmp_path / "p").mkdir()
    (tmp_path / "p/mine.tar").write_bytes(b"")
    skipping = ("--on_bad_image", "skip:0.1")
    assert "holds tar files of others: 'mine.tar'" in refused(class_folders, "--out", "p", *skipping)
    assert "DATA needs --out OUT" in refused(class_folders)
    assert "say one of DATA, --index DIR and --check DIR" in refused()
    assert "say one of DATA, --index DIR and --check DIR" in refused(class_folders, "--index", "p")


def test_help_is_quick():
    code = """
import sys
from sat_vg.backbone_finetuning.commands.shard import cli as shard
try:
    shard.main(["--help"])
finally:
    print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "--images_per_shard" in done.stdout
    assert "torch" not in done.stdout.split()


def test_geotiffs_in_shards(shard_command, train_here, tmp_path):
    geotiffs = pytest.importorskip("geotiffs")
    for number in range(12):
        name = list(geotiffs.SPECTRA)[number % 3]
        tile = geotiffs.sentinel_2(name, number + 1, size=20)
        geotiffs.write_geotiff(tmp_path / "tiles" / name / f"{number}.tif", tile, descriptions=geotiffs.SENTINEL_2)
    bands = ("--bands", "red=4,green=3,blue=2,nir=8")
    code, _, err = shard_command("tiles", "--out", "SHARDS", *bands, "--images_per_shard", 2)
    assert code == 0, err
    runs = [
        train_here(
            *TINY, "--dataset_path", name, *bands, *SAME, "--batch_size", 3, "--num_epochs", 1, folder=name + "_run"
        )
        for name in ("tiles", "SHARDS")
    ]
    assert [run.code for run in runs] == [0, 0], runs[1].err
    assert "of 13, uint16" in runs[1].out
    assert results_of(runs[0]) == results_of(runs[1])
