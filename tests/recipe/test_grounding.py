"""Grounding end to end on a small set in DIOR-RSVG's layout: trains, goes on after a kill, evaluates, predicts."""

import json
import re
import shlex
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from grounding_files import write_squares
from grounding_here import RANDOM, SMALL, STARTED, start
from lives import none_left
from PIL import Image
from run_outputs import same

from sat_vg.backbone_finetuning import FineTuneModel
from sat_vg.backbone_finetuning.commands.runs.run import list_runs
from sat_vg.backbone_finetuning.configs.option_parser import parse_options
from sat_vg.backbone_finetuning.utils.tensor_files import load_tensors
from sat_vg.grounding import GroundingConfig, GroundingModel, train_grounding

pytest_plugins = ("grounding_here",)  # its fixtures
pytestmark = [pytest.mark.recipe, pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")]


def lines_of(folder: Path) -> list[dict]:
    entries = map(json.loads, (folder / "logs/metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in entry.items() if k not in ("seconds", "phrases_per_second")} for entry in entries]


@pytest.mark.parametrize(
    ("number", "save_every_minutes", "code"),
    [(signal.SIGKILL, 0, -9), (signal.SIGKILL, 1e-6, -9), (signal.SIGTERM, 0, 75), (signal.SIGINT, 0, 130)],
    ids=["killed, saved by epoch", "killed, saved by step", "SIGTERM", "Ctrl-C"],
)
def test_a_stopped_run_goes_on_to_the_same_bits(number, save_every_minutes, code, whole, dior, tmp_path):
    flags = (*RANDOM, "--save_every_minutes", save_every_minutes)
    with none_left(STARTED):
        life = start(tmp_path / "run", dior, *flags)
        metrics = life.folder / "logs/metrics.jsonl"
        # Behind the second step of the second epoch, so that the state of its first one is saved: the first epoch has
        # 8 steps and a line at its end.
        assert life.until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= 11)
        life.process.send_signal(number)
        assert life.process.wait(30) == code, life.err
        again = start(life.folder, dior, *flags)
        assert again.wait() == 0, again.err
    assert "warning" not in again.out and "has finished" not in again.out
    step = int(re.search(r"continuing ckpt/last.pt: 1 epoch done, step (\d+)", again.out)[1])
    assert step == 8 if code == -9 and not save_every_minutes else 8 < step < 16
    for name in ("best_model.pt", "last.pt"):
        one, two = (load_tensors(folder / "ckpt" / name) for folder in (whole, life.folder))
        for content in (one, two):
            del content["config"]["save_every_minutes"]
        assert same(one, two), name
    assert lines_of(life.folder) == lines_of(whole)
    assert len(lines_of(whole)) == 2 * 9


def test_a_finished_run_says_so_and_other_settings_or_data_are_refused(whole, dior, ground, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    flags = ("train", *SMALL, *RANDOM, "--data")
    code, out, _ = ground(*flags, dior, folder=run)
    assert code == 0 and "has finished" in out and "done: validation Pr@0.5" in out
    code, _, err = ground(*flags, dior, "--learning_rate", "0.01", folder=run)
    assert code == 2 and "has other settings: learning_rate was 0.0005 and is 0.01" in err
    changed = shutil.copytree(dior, tmp_path / "changed")
    xml = changed / "Annotations/00003.xml"
    xml.write_text(xml.read_text().replace("a red square", "one red square"))
    code, _, err = ground(*flags, changed, folder=run)
    assert code == 2 and "the data have changed since the run" in err
    code, out, err = ground(*flags, changed, "--resume", "never", "--num_epochs", "1", folder=run)
    assert code == 0, err
    assert "epoch 1/1" in out and (run / "ckpt/earlier_run_1/last.pt").is_file()
    code, _, err = ground(*flags, changed, "--num_epochs", "1", folder=run)
    assert code == 0, err


def test_a_damaged_state_is_told_and_the_one_before_it_used(whole, dior, ground, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    last = run / "ckpt/last.pt"
    for path in (last, run / "ckpt/step_00000016.pt"):  # two names of one file, but for the copying
        path.write_bytes(path.read_bytes()[:-2000])
    code, out, err = ground("train", *SMALL, *RANDOM, "--data", dior, folder=run)
    assert code == 0, err
    assert "warning:" in out and "ckpt/step_00000008.pt" in out and "1 epoch done, step 8" in out
    assert same(load_tensors(last), load_tensors(whole / "ckpt/last.pt"))


def test_evaluate_writes_figures_that_agree(whole, dior, ground, tmp_path):
    code, out, err = ground("evaluate", whole / "ckpt/best_model.pt", dior, "--out", "found")
    assert code == 0, err
    figures = json.loads((tmp_path / "found/metrics.json").read_text())
    rows = json.loads((tmp_path / "found/predictions.json").read_text())
    page = (tmp_path / "found/report.html").read_text()
    assert figures["num_phrases"] == len(rows) == 4 and figures["num_images"] == 2 and figures["split"] == "test"
    ious, inner, outer = [], 0.0, 0.0
    for row in rows:
        a, b = row["box"], row["target"]
        shared = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
        union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
        ious, inner, outer = [*ious, shared / union], inner + shared, outer + union
        assert row["iou"] == pytest.approx(ious[-1], abs=2e-3)
    assert figures["mean_iou"] == pytest.approx(np.mean(ious), abs=2e-3)
    assert figures["cum_iou"] == pytest.approx(inner / outer, abs=2e-3)
    for threshold in (0.5, 0.6, 0.7, 0.8, 0.9):
        assert figures[f"pr@{threshold}"] == np.mean([iou >= threshold for iou in ious])
    assert sum(group["count"] for group in figures["by_box_size"].values()) == 4
    assert set(figures["without_the_image"]) == {"blind", "position only", "constant box"}
    assert f"<b>{100 * figures['mean_iou']:.1f}<small>%" in page and page.count("<figure>") == 4
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert f"mean IoU {100 * figures['mean_iou']:.1f} %" in out


def test_predict_is_the_same_from_python_and_by_the_command(whole, dior, ground, tmp_path):
    image, checkpoint = dior / "JPEGImages/00011.jpg", whole / "ckpt/best_model.pt"
    code, out, err = ground("predict", checkpoint, image, "the red square", "--out", "found.png", "--json")
    assert code == 0, err
    printed = json.loads(out)
    model = GroundingModel.load_checkpoint(checkpoint)
    found = model.predict(image, "the red square")
    assert printed["box"] == [round(side, 1) for side in found.box]
    assert printed["score"] == round(found.score, 4)
    pixels = np.asarray(Image.open(image))
    several = model.predict(pixels, ["the red square", "a blue square on the right"])
    assert several[0].box == pytest.approx(found.box, abs=1e-3)
    with Image.open(tmp_path / "found.png") as picture:
        assert picture.format == "PNG" and picture.size == (64, 64)
        assert (np.asarray(picture) == (255, 0, 255)).all(-1).any()
    picture = tmp_path / "found.png"
    before = picture.read_bytes()
    again = f"../{tmp_path.name}/found.png"
    code, _, err = ground("predict", checkpoint, picture, "the red square", "--out", again)
    assert code == 2 and "this is the image itself" in err and picture.read_bytes() == before
    code, out, err = ground("predict", checkpoint, image, "the red zeppelin")
    assert code == 0 and "data: 1 phrase has words that the model does not know\n" in out, err
    code, _, err = ground("predict", checkpoint, image, " ?! ")
    assert code == 2 and "has no words" in err


def test_runs_shows_a_run_of_grounding_and_how_it_goes_on(whole, tmp_path):
    """Its last.pt was taken for that of a fine-tuning, and the command began one."""
    shutil.copytree(whole / "ckpt", tmp_path / "run")
    (row,) = list_runs(tmp_path)
    assert (row.state, row.epochs, row.num_epochs, row.metric, row.go_on) == ("finished", 2, 2, "val_pr@0.5", None)
    content = load_tensors(tmp_path / "run/last.pt")
    content["state"].update(finished=False, epoch=1)
    torch.save(content, tmp_path / "run/last.pt")
    (row,) = list_runs(tmp_path)
    assert row.state == "stopped" and row.go_on is not None
    words = shlex.split(row.go_on)
    assert words[:3] == ["sat-vg", "ground", "train"]
    assert parse_options(GroundingConfig, words[3:], "", "", {}).to_dict() == content["config"] | {"resume": "auto"}
    content["config"]["width"] = 7
    torch.save(content, tmp_path / "run/last.pt")
    (row,) = list_runs(tmp_path)
    assert row.state == "damaged" and "width = 7" in str(row.error)


def test_a_fine_tuned_backbone_is_the_start_and_stays_if_frozen(dior, tmp_path, monkeypatch):
    monkeypatch.setenv("SAT_VG_CACHE", str(tmp_path / "cache"))
    source = FineTuneModel("resnet18", 3, pretrained=False, image_size=64, seed=7)
    source.save_checkpoint(tmp_path / "best_model.pt")
    start_of = source.get_feature_extractor().state_dict()
    settings = {
        "data": str(dior), "backbone": str(tmp_path / "best_model.pt"), "image_size": 64, "width": 48, "num_heads": 4,
        "fusion_layers": 1, "batch_size": 8, "num_epochs": 1, "num_threads": 1,
    }  # fmt: skip

    def backbone(name: str, **more: object) -> dict[str, torch.Tensor]:
        config = GroundingConfig(
            **settings, **more, checkpoint_dir=str(tmp_path / name), log_dir=str(tmp_path / name / "logs")
        )
        model = GroundingModel.load_checkpoint(train_grounding(config).best_model)
        return model.network.backbone.state_dict()

    frozen = backbone("frozen", freeze_backbone=True)
    assert same(dict(frozen), dict(start_of)) and len(frozen) > 100
    slow = backbone("slow", backbone_lr_scale=1e-6)  # what it starts with is what it nearly has after an epoch
    assert not same(dict(slow), dict(start_of))
    for name, tensor in slow.items():
        torch.testing.assert_close(tensor, start_of[name], atol=1e-6, rtol=0, msg=name)


def test_a_frozen_random_backbone_is_loaded_again(dior, tmp_path, monkeypatch):
    monkeypatch.setenv("SAT_VG_CACHE", str(tmp_path / "cache"))
    config = GroundingConfig(
        data=str(dior), backbone="resnet18", weights="none", freeze_backbone=True, image_size=64, width=48,
        num_heads=4, fusion_layers=1, num_epochs=1, num_threads=1,
        checkpoint_dir=str(tmp_path / "ckpt"), log_dir=str(tmp_path / "logs"),
    )  # fmt: skip
    model = GroundingModel.load_checkpoint(train_grounding(config).best_model)
    start_of = FineTuneModel("resnet18", 2, pretrained=False, image_size=64).get_feature_extractor().state_dict()
    assert same(dict(model.network.backbone.state_dict()), dict(start_of))


def test_the_shown_commands_and_the_shown_python(dior, ground, tmp_path):
    page = (REPOSITORY / "docs/grounding.md").read_text()
    FineTuneModel("resnet18", 3, pretrained=False, image_size=64).save_checkpoint(
        tmp_path / "checkpoints/finetune/best_model.pt"
    )
    shutil.copy(dior / "JPEGImages/00011.jpg", tmp_path / "image.jpg")
    commands = re.findall(r"^sat-vg ground (.*)$", page, re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["train", "train", "evaluate", "predict"]
    quick = SMALL[: SMALL.index("--checkpoint_dir")]
    for command in commands:
        words = [str(dior) if word == "DIR" else word for word in shlex.split(command)]
        more = (*quick, "--num_epochs", "1", "--resume", "never") if words[0] == "train" else ()
        code, _, err = ground(*words, *more)
        assert code == 0, (command, err)
    assert {"metrics.json", "predictions.json", "report.html"} == {
        f.name for f in (tmp_path / "evaluation").iterdir()
    }
    assert (tmp_path / "found.png").is_file()
    names: dict[str, object] = {}
    for snippet in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        exec(compile(snippet, "grounding.md", "exec"), names)
    assert len(names["found"].box) == 4


def test_usage_and_unknown_commands(ground):
    code, out, _ = ground("--help")
    assert code == 0 and "sat-vg ground evaluate CHECKPOINT" in out
    code, _, err = ground("dig")
    assert code == 2 and "has no command 'dig'" in err


def test_squares_are_learned_and_a_flipped_image_gives_the_flipped_box(tmp_path, monkeypatch):
    monkeypatch.setenv("SAT_VG_CACHE", str(tmp_path / "cache"))
    config = GroundingConfig(
        data=str(write_squares(tmp_path, {"train": 60, "val": 20})), backbone="resnet18", weights="none",
        image_size=64, width=48, num_heads=2, fusion_layers=1, num_epochs=3, batch_size=16, learning_rate=2e-3,
        num_threads=1, checkpoint_dir=str(tmp_path / "ckpt"), log_dir=str(tmp_path / "logs"),
    )  # fmt: skip
    result = train_grounding(config)
    assert result.metrics["pr@0.5"] >= 0.8
    model = GroundingModel.load_checkpoint(result.best_model)
    shifts = []
    for number, entry in enumerate(json.loads((tmp_path / "val.json").read_text())):
        pixels = np.asarray(Image.open(tmp_path / f"val_{number}.png"))
        x1, y1, x2, y2 = model.predict(pixels, entry["phrase"]).box
        flipped = model.predict(pixels[:, ::-1], entry["phrase"]).box
        shifts.append(np.abs(np.subtract(flipped, (64 - x2, y1, 64 - x1, y2))).mean())
    assert np.mean(shifts) < 6  # of 64 pixels


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_drawn_tiles_are_learned(tmp_path, monkeypatch, ground):
    """``python -m sat_vg.grounding.train`` as it is; then the test tiles, beside what sees no image."""
    folder = tmp_path / "tiles"
    folder.mkdir()
    code, out, err = ground("train", folder=folder)
    assert code == 0, err
    assert "no --data given: built-in drawn tiles" in out and "blind" in out and "position only" in out
    code, _, err = ground("evaluate", "checkpoints/grounding_tiles/best_model.pt", "--out", "found", folder=folder)
    assert code == 0, err
    figures = json.loads((folder / "found/metrics.json").read_text())
    assert figures["num_phrases"] == 1000 and figures["pr@0.5"] >= 0.6
    assert max(one["pr@0.5"] for one in figures["without_the_image"].values()) < 0.2
    assert figures["by_phrase_family"]["position"]["pr@0.5"] >= 0.6
