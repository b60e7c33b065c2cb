"""``sat-vg tune``: real trainings, killed and gone on with, shared by processes; and the study without trainings."""

import json
import os
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from conftest import COLOURS, REPOSITORY, TINY, environment, write_image
from PIL import Image

from sat_vg.backbone_finetuning.commands.compare.training_process import EndedTraining
from sat_vg.backbone_finetuning.commands.tune import run as tune_run
from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.utils.errors import ConfigError

pytestmark = [pytest.mark.recipe, pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")]

QUICK = (*TINY, "--pretrained", "false", "--image_size", "32", "--batch_size", "6", "--warmup_epochs", "0",
         "--num_workers", "0", "--early_stopping_patience", "0")  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Class folders that are split by seed."""
    root = tmp_path_factory.mktemp("tune") / "images"
    for number, (name, colour) in enumerate(COLOURS.items()):
        for index in range(10):
            write_image(root / name / f"{index}.png", colour, 100 * number + index)
    return root


@pytest.fixture
def here(command, monkeypatch, images):
    """Run ``sat-vg tune`` in this process; its trainings are processes of their own."""
    for name, value in environment(images.parent).items():
        monkeypatch.setenv(name, value)
    return lambda *arguments: command("tune", *arguments)


def study_of(out: Path, *texts: str, identity: dict | None = None, first_epochs: int | None = None, seed: int = 0):
    from sat_vg.backbone_finetuning.commands.tune.search import Search, parse_search
    from sat_vg.backbone_finetuning.commands.tune.study import SearchStudy

    search = Search(FinetuneConfig.of({"dataset_path": "x", "seed": seed}), tuple(parse_search(texts)))
    return SearchStudy(out, search, identity or {"learning_rate": 1}, True, first_epochs)


RANGES = ("learning_rate=1e-5..1e-2:log", "dropout=0..0.5", "strategy=full,lp_ft")


def run_study(out: Path, most: int, dies_in: tuple[int, ...] = ()) -> list[tuple]:
    """All trials of a search whose score is a function of its values; it dies once in each of ``dies_in``."""
    while True:
        study = study_of(out, *RANGES)
        with study.next_trial(most) as trial:
            if trial is None:
                return sorted((row.number, *row.values.values(), row.score) for row in study.rows())
            if trial.number in dies_in:
                dies_in = tuple(number for number in dies_in if number != trial.number)
                continue
            trial.end(1, 1 - abs(trial.values["dropout"] - 0.2) - trial.values["learning_rate"])


def test_a_search_that_died_goes_on_with_the_same_trials(tmp_path):
    whole = run_study(tmp_path / "whole", 7)
    assert [row[0] for row in whole] == list(range(1, 8))
    assert len({row[1:4] for row in whole}) == 7, "none twice"
    assert run_study(tmp_path / "killed", 7, dies_in=(1, 4, 7)) == whole
    assert len(run_study(tmp_path / "killed", 8)) == 8, "more trials later"
    other = study_of(tmp_path / "other", *RANGES, seed=1)
    with other.next_trial(1) as trial:
        assert trial.values["learning_rate"] != whole[0][1]


def test_a_grid_is_run_once_whoever_dies(tmp_path):
    done = []
    for dies in (False, True, True, False, False, False, False):
        study = study_of(tmp_path, "weight_decay=0,1e-3", "dropout=0,0.1")
        with (
            study.next_trial(4) as trial,
            study_of(tmp_path, "weight_decay=0,1e-3", "dropout=0,0.1").next_trial(4) as other,
        ):
            if trial is None:
                break
            if other is not None:
                assert other.number != trial.number, "the first has its trial locked"
            if not dies:
                trial.end(1, 0.5)
                done.append(tuple(trial.values.values()))
    assert sorted(done) == [("0", "0"), ("0", "0.1"), ("1e-3", "0"), ("1e-3", "0.1")]


def test_what_is_below_the_median_is_stopped(tmp_path):
    study = study_of(tmp_path, *RANGES, first_epochs=1)
    for score in (0.5, 0.6, 0.7, 0.8):
        with study.next_trial(9) as trial:
            assert not trial.is_below_median({1: score, 2: score}), "the first four are the measure"
            trial.end(2, score)
    with study.next_trial(9) as trial:
        assert not trial.is_below_median({1: 0.1}), "not in the first epoch"
        assert trial.is_below_median({1: 0.1, 2: 0.64})
        assert trial.is_below_median({1: 0.1, 2: 0.64, 3: 0.99}), "what came after does not count"
        trial.end(2)
    with study.next_trial(9) as trial:
        assert not trial.is_below_median({1: 0.1, 2: 0.66})
        trial.end(2, reason="the loss is not finite")
    rows = study.rows()
    assert [row.number for row in rows] == [4, 3, 2, 1, 5, 6]
    assert [row.state for row in rows[3:]] == ["done", "pruned", "failed"]
    assert rows[-1].reason == "the loss is not finite"


def test_a_training_that_had_ended_and_lost_its_log_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(tune_run, "_train", lambda *given: EndedTraining(0, None, 1.0, None))
    study = study_of(tmp_path, *RANGES)
    with study.next_trial(9) as trial:
        tune_run._run_trial(trial, FinetuneConfig(dataset_path="x"), "val_accuracy", 9, set())
    (row,) = study.rows()
    assert row.state == "failed" and "there is no epoch in" in row.reason


def test_a_setting_that_changes_nothing_has_little_importance(tmp_path):
    study = study_of(tmp_path, *RANGES, seed=2)
    for _ in range(16):
        with study.next_trial(16) as trial:
            trial.end(1, 0.5 + 0.2 * (trial.values["strategy"] == "lp_ft") + 0.1 * trial.values["dropout"])
    found = study.importances()
    assert sum(found.values()) == pytest.approx(1)
    assert found["learning_rate"] < 0.2


def test_another_search_or_another_file_is_refused(tmp_path):
    study_of(tmp_path / "a", *RANGES, identity={"label_smoothing": 0.0, "images": "x"})
    with pytest.raises(ConfigError, match="holds another search") as caught:
        study_of(tmp_path / "a", *RANGES, identity={"label_smoothing": 0.1, "images": "y", "bands": ["1", "2"]})
    assert {
        "  label_smoothing: was 0.0, now 0.1", "  bands: was None, now ['1', '2']", "  the images have changed",
        "Use the same again to go on, or another --out for this one",
    } < set(str(caught.value).splitlines())  # fmt: skip
    # A version with other defaults says which settings go on, and needs none for what is searched.
    now = {"label_smoothing": 0.1, "images": "x", "bands": ["1"], "learning_rate": 2}
    with pytest.raises(ConfigError, match=r"Use --bands null --label_smoothing 0\.0 to go on, or another --out"):
        study_of(tmp_path / "a", *RANGES, identity=now)
    # A version that knows more settings goes on, where these are at their defaults.
    study_of(tmp_path / "a", *RANGES, identity={"label_smoothing": 0.0, "images": "x", "pool": "default"})
    (tmp_path / "b").mkdir()
    (tmp_path / "b/study.db").write_bytes(b"no database at all" * 100)
    optuna.create_study(storage=f"sqlite:///{tmp_path}/theirs.db", study_name="foreign")
    for name in ("c", "d"):
        (tmp_path / name).mkdir()
    (tmp_path / "theirs.db").rename(tmp_path / "c/study.db")
    with sqlite3.connect(tmp_path / "d/study.db") as database:
        database.execute("create table studies (x)")
    optuna.create_study(storage=f"sqlite:///{tmp_path}/named.db", study_name="sat-vg tune").ask()
    (tmp_path / "e").mkdir()
    (tmp_path / "named.db").rename(tmp_path / "e/study.db")
    (tmp_path / "f/trials/0001").mkdir(parents=True)
    (tmp_path / "g/study.db").mkdir(parents=True)
    for name, message in (
        ("f", "whose study.db is gone"), ("g", "is no storage of a search"),
        ("b", "is no storage of a search"), ("c", "another study ('foreign')"), ("d", "is no storage of a search"),
        ("e", "did not begin"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="choose another --out") as caught:
            study_of(tmp_path / name, *RANGES)
        assert message in str(caught.value)


@pytest.mark.parametrize("search", ["strategy=full,lp_ft", "weight_decay=0,1e-3"])
def test_a_search_in_which_lp_ft_trained_otherwise_is_refused(images, tmp_path, here, monkeypatch, search):
    """Whether an earlier version began it, in which lp_ft set nothing, or the learning rate was set then."""
    monkeypatch.setattr(tune_run, "_train", lambda *given: EndedTraining(0, None, 1.0, None))
    arguments = (images, "--search", search, "--num_epochs", 8, *QUICK, "--out", tmp_path / "out")
    usual = ("--learning_rate", 3e-4, "--label_smoothing", 0)
    assert here(*arguments, *usual)[0] == 1, "no trial has a score"
    code, _, err = here(*arguments)
    assert code == 2
    assert "learning_rate, label_smoothing: were 0.0003, 0.0 also where lp_ft trains, which now sets its own" in err
    assert "Use --learning_rate 0.0003 --label_smoothing 0.0 to go on, or another --out" in err
    assert here(*arguments, *usual)[0] == 1
    # Where lp_ft set its own, these are no longer free.
    arguments = (*arguments[:-1], tmp_path / "other")
    assert here(*arguments)[0] == here(*arguments)[0] == 1
    code, _, err = here(*arguments, *usual)
    assert code == 2
    assert "learning_rate, label_smoothing: lp_ft set its own, and now they are given" in err
    # In few epochs it sets nothing.
    arguments = (images, "--search", search, "--num_epochs", 4, *QUICK, "--out", tmp_path / "short")
    assert here(*arguments, *usual)[0] == here(*arguments)[0] == 1


@pytest.mark.parametrize("epochs", [4, 8])
def test_a_search_without_a_strategy_goes_on_as_it_was_begun(images, tmp_path, here, monkeypatch, epochs):
    """Before short runs began with a linear probe all stages were trained at once, as the trials' logs say."""
    monkeypatch.setattr(tune_run, "_train", lambda *given: EndedTraining(0, None, 1.0, None))
    out = tmp_path / "out"
    search = ("--search", "weight_decay=0,1e-3", "--num_epochs", epochs, "--pretrained", "true")
    arguments = (images, *search, "--out", out)
    assert here(*arguments)[0] == 1, "no trial has a score"
    log = out / "trials/0001/logs/metrics.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text('{"phase": "full", "epoch": 1, "step": 7}\n')
    assert here(*arguments)[0] == 1, "a search of this version, that a long run began"
    as_earlier_versions_began_it(out)
    code, _, err = here(*arguments)
    assert code == 2
    assert "strategy: was 'full', now None" in err
    assert "Use --strategy full " in err
    flags = shlex.split(err.split("Use ")[1].split(" to go on")[0])
    assert here(*arguments, *flags)[0] == 1, "as it was begun"
    log.write_text('{"phase": "linear_probe", "epoch": 1, "step": 7}\n')
    assert here(*arguments)[0] == (1 if epochs == 4 else 2), "it had begun with a probe"


def as_earlier_versions_began_it(out: Path) -> None:
    """Take what this version adds out of the record of a search."""
    with sqlite3.connect(out / "study.db") as study:
        (text,) = study.execute("SELECT value_json FROM study_user_attributes WHERE key = 'identity'").fetchone()
        identity = json.loads(text)
        del identity["fields that lp_ft sets"]
        study.execute("UPDATE study_user_attributes SET value_json = ?", (json.dumps(identity),))


def test_a_grid_from_its_images_to_the_command_of_the_best(images, tmp_path, here):
    search = ("--search", "learning_rate=1e-3,1e-9", "--num_epochs", "2", *QUICK, "--out", tmp_path / "out")
    code, said, err = here(images, *search)
    assert code == 0, err
    assert "2 trials, every combination once" in said
    assert said.count("epoch   2/2") == 2
    found = json.loads((tmp_path / "out/tuning.json").read_text())
    assert sorted(trial["values"]["learning_rate"] for trial in found["trials"]) == ["1e-3", "1e-9"]
    for trial in found["trials"]:
        folder = tmp_path / f"out/trials/{trial['number']:04d}"
        lines = [json.loads(line) for line in (folder / "logs/metrics.jsonl").read_text().splitlines()]
        assert trial["epochs"] == 2
        # The training of the command below resolves the same unset fields.
        set_here = FinetuneConfig.from_yaml(folder / "config.yaml").given - {"checkpoint_dir", "log_dir"}
        assert set_here == {name.removeprefix("--") for name in QUICK[::2]} | {
            "dataset_path", "learning_rate", "num_epochs"
        }  # fmt: skip
        assert trial["score"] == max(line["val_accuracy"] for line in lines if "val_accuracy" in line)
        assert (folder / "checkpoints/best_model.pt").exists() == (trial["number"] == found["best"]["number"])
    assert found["best"]["score"] == max(trial["score"] for trial in found["trials"])
    assert (tmp_path / "out/trials.csv").read_text().startswith("trial,state,val_accuracy,epochs,learning_rate\n")
    with Image.open(tmp_path / "out/importance.png") as picture:
        assert picture.width > 500
        assert len(picture.convert("L").getcolors()) > 20
    best = FinetuneConfig.from_yaml(tmp_path / "out/best.yaml")
    assert best.num_epochs == 2
    assert best.checkpoint_dir == FinetuneConfig().checkpoint_dir
    words = shlex.split(found["best"]["command"])
    assert words[:2] == ["sat-vg", "train"]
    assert words[words.index("--learning_rate") + 1] == str(best.learning_rate)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/trials").rglob("*.jsonl")}
    code, said, err = here(images, *search)
    assert code == 0, err
    assert "epoch " not in said.replace("epochs", "").replace("after epoch", "")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    code, _, err = here(images, *search, "--momentum", "0.5")
    assert code == 2
    assert "momentum: was 0.9, now 0.5" in err
    extra = images / "sea/extra.png"
    write_image(extra, COLOURS["sea"], 999)
    code, _, err = here(images, *search)
    extra.unlink()
    assert code == 2
    assert "the images have changed" in err


def test_weights_that_saw_what_is_val_now_are_warned_of_once(images, tmp_path, here):
    model = FineTuneModel("squeezenet1_1", 3, pretrained=False, image_size=32)
    model.save_checkpoint(tmp_path / "w.pt", config={"dataset_path": str(images), "seed": 3})
    settings = dict(zip(QUICK[::2], QUICK[1::2], strict=True)) | {"--pretrained": "true", "--num_epochs": "1"}
    flags = [word for pair in settings.items() for word in pair]
    search = ("--search", "learning_rate=1e-3,1e-9", "--weights", tmp_path / "w.pt", "--out", tmp_path / "out")
    code, said, err = here(images, *search, *flags)
    assert code == 0, err
    assert "[2/2]" in said
    assert said.count("the starting weights were trained on these images with seed = 3, here it is 0") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--search"], "--search needs NAME=VALUES behind it"),
        (["--search", "weight_decay=0,1", "--trials", "0"], "--trials 0: must be a whole number of 1 or more"),
        (["--search", "weight_decay=0,1", "--learnig_rate", "1"], "did you mean --learning_rate?"),
        (["--search", "backbone=resnet8,resnet18"], "backbone = 'resnet8': unknown"),
        (["--search", "weight_decay=0,1", "--config", "none.yaml"], "the config file 'none.yaml' cannot be read"),
        (["--search", "weight_decay=0,1", "elsewhere"], "unrecognized arguments: elsewhere"),
        (["--search", "weight_decay=0,1", "--out", "a_file"], "cannot be written to"),
        (["--search", "weight_decay=0,1", "--out", "a_file/below"], "cannot be written to"),
    ],
)
def test_bad_input(images, tmp_path, here, arguments, message):
    (tmp_path / "a_file").touch()
    code, _, err = here(images, *arguments)
    assert code == 2
    assert message in err
    assert not (tmp_path / "tuning").exists()


def test_images_that_are_none(tmp_path, here):
    code, _, err = here("nowhere", "--search", "weight_decay=0,1")
    assert code == 2
    assert "nowhere" in err


def test_without_optuna_one_sentence_says_what_to_install():
    code = """
import sys
sys.modules |= {"optuna": None, "fastapi": None}
from sat_vg.backbone_finetuning.commands.tune.cli import main
from sat_vg.backbone_finetuning.commands.serve.cli import main as serve
print(main(["images", "--search", "weight_decay=0,1"]), serve(["model.pt"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "2 2\n", done.stderr
    for extra, package in (("tune", "optuna"), ("serve", "fastapi")):
        assert f"sat-vg {extra} needs {package}, which is not installed: pip install 'sat_vg[{extra}]'" in done.stderr


def test_the_shown_commands(images, tmp_path, here):
    page = (REPOSITORY / "docs/tuning.md").read_text()
    shown = [line for line in page.replace("\\\n", " ").splitlines() if line.startswith("sat-vg tune")]
    assert len(shown) == 3
    cell = FinetuneConfig.of({"dataset_path": str(images), "backbone": "resnet18", "strategy": "full"}).to_dict()
    content = {"rows": [{"backbone": "resnet18", "strategy": "full"}], "cells": [{"settings": cell}]}
    (tmp_path / "OUT").mkdir()
    (tmp_path / "OUT/comparison.json").write_text(json.dumps(content))
    for line in shown:
        words = [str(images) if word == "DIR" else word for word in shlex.split(line)[2:]]
        code, said, err = here(*words, "--dry_run")
        assert code == 0, (line, err)
        assert "dry run: nothing was trained" in said


def test_a_dry_run_finds_broken_images(images, tmp_path, here):
    broken = images / "sea" / "broken.png"
    broken.write_bytes(b"no image")
    try:
        code, _, err = here(images, "--search", "weight_decay=0,1e-3", "--out", tmp_path / "out", "--dry_run")
    finally:
        broken.unlink()
    assert code == 2
    assert "broken.png" in err
    assert not (tmp_path / "out").exists()


def test_in_python(images, capfd):
    from sat_vg.backbone_finetuning import tune

    search = {"learning_rate": "1e-5..1e-2:log", "strategy": ["full", "lp_ft"]}
    assert tune(images, search, trials=3, num_epochs=9, pretrained=False, dry_run=True) == {}
    said = capfd.readouterr().out
    assert "learning_rate: 1e-05..0.01:log\n  strategy: full | lp_ft\n3 trials, chosen by TPE with seed 0" in said
    assert "after epoch 3 at the soonest" in said
    with pytest.raises(ConfigError, match="did you mean 'num_epochs'"):
        tune(images, search, num_epoch=9)
    of_several = {"bands": ["1,2", "3"], "train_image_size": [(32, 64), None], "use_augmentation": [True, False]}
    assert tune(images, of_several, dry_run=True) == {}
    said = capfd.readouterr().out
    assert "  bands: 1,2 | 3\n  train_image_size: 32,64 | null\n  use_augmentation: true | false\n" in said
    with pytest.raises(ConfigError, match="bands has one value; give two, or set it for all trials: bands='1,2'"):
        tune(images, {"bands": ["1,2"], "learning_rate": [1e-3, 1e-4]}, dry_run=True)


def tuning(images: Path, out: Path, *more: str) -> list[str]:
    search = ("learning_rate=1e-4..1e-2:log", "dropout=0,0.3")
    return [sys.executable, "-m", "sat_vg", "tune", str(images), "--search", *search, "--num_epochs", "12", *QUICK,
            "--out", str(out), *more]  # fmt: skip


def results(out: Path) -> list[tuple]:
    found = json.loads((out / "tuning.json").read_text())["trials"]
    return sorted((trial["number"], *trial["values"].items(), trial["score"], trial["state"]) for trial in found)


@pytest.mark.slow
def test_killed_three_times_it_has_the_same_trials_as_never_killed(images, tmp_path):
    env = environment(tmp_path)
    whole = subprocess.run(
        tuning(images, tmp_path / "whole", "--trials", "4"), env=env, capture_output=True, text=True
    )
    assert whole.returncode == 0, whole.stderr
    command = tuning(images, tmp_path / "killed", "--trials", "4")
    for number, takes_training_along in ((1, True), (2, False), (4, True)):
        process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, start_new_session=True)
        log = tmp_path / f"killed/trials/{number:04d}/logs/metrics.jsonl"
        wait_for(lambda log=log: log.exists() and log.read_text().count('"val_accuracy"') > 2, process)
        (os.killpg if takes_training_along else os.kill)(process.pid, signal.SIGKILL)
        process.wait()
    last = subprocess.run(command, env=env, capture_output=True, text=True)
    assert last.returncode == 0, last.stderr
    assert "going on with" in last.stdout
    assert len(results(tmp_path / "killed")) == 4
    assert results(tmp_path / "killed") == results(tmp_path / "whole")
    for folder in sorted((tmp_path / "killed/trials").iterdir()):
        lines = [json.loads(line) for line in (folder / "logs/metrics.jsonl").read_text().splitlines()]
        epochs = [line["epoch"] for line in lines if "val_accuracy" in line]
        assert epochs == list(range(1, len(epochs) + 1)), "no epoch twice, none missing"


@pytest.mark.slow
def test_two_processes_share_a_search_and_ctrl_c_stops_one(images, tmp_path):
    env = environment(tmp_path)
    command = tuning(images, tmp_path / "out", "--trials", "5", "--prune", "false")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, env=env, start_new_session=True, **pipes) for _ in range(2)]
    wait_for(lambda: len(list((tmp_path / "out/trials").glob("*/logs/metrics.jsonl"))) >= 2, both[1])
    both[0].send_signal(signal.SIGINT)
    _, err = both[0].communicate(timeout=120)
    assert both[0].returncode == 130, err
    assert "the same command goes on" in err
    third = subprocess.Popen(command, env=env, **pipes)
    for process in (both[1], third):
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    rows = results(tmp_path / "out")
    assert [row[0] for row in rows] == list(range(1, 6))
    assert {row[-1] for row in rows} == {"done"}
    assert len({row[1:3] for row in rows}) == 5


def wait_for(condition, process: subprocess.Popen, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
