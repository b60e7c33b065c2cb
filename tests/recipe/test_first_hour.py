"""The first hour of a new user, on the command line and in Python, with every line that counts read."""

import json
import re
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, TINY, environment, write_classes
from lives import Life, none_left
from PIL import Image

from sat_vg.backbone_finetuning import (
    FinetuneConfig,
    FineTuneModel,
    check,
    compare,
    evaluate,
    export,
    extract,
    finetune,
    runs,
)
from sat_vg.backbone_finetuning.utils.errors import CheckpointError, ConfigError, DataError, UserError

pytestmark = pytest.mark.recipe

SMALL = {
    "backbone": TINY[1], "pretrained": False, "image_size": 32, "batch_size": 6, "num_epochs": 2, "warmup_epochs": 0,
    "num_workers": 0, "mixed_precision": False,
}  # fmt: skip
FLAGS = [text for name, value in SMALL.items() for text in (f"--{name}", str(value).lower())]


@pytest.fixture
def images(tmp_path) -> Path:
    return write_classes(tmp_path / "images")


def test_from_a_folder_of_images_to_an_export(images, command, tmp_path):
    code, out, _ = command("check", images)
    assert code == 0 and "0 errors" in out
    code, out, _ = command("train", "--dataset_path", images, *FLAGS, "--name", "first", "--dry_run")
    assert code == 0 and "dry run: nothing was trained" in out
    assert not (tmp_path / "runs").exists()
    code, out, _ = command("train", "--dataset_path", images, *FLAGS, "--name", "first")
    assert code == 0
    lines = [json.loads(line) for line in (tmp_path / "runs/first/logs/metrics.jsonl").read_text().splitlines()]
    best = max(
        (line for line in lines if "val_loss" in line), key=lambda line: (line["val_accuracy"], -line["val_loss"])
    )
    gap = best["val_loss"] - best["train_loss"]
    told = f"train_loss {best['train_loss']:.4f}, val_loss {best['val_loss']:.4f}, gap {gap:+.4f}"
    assert f"done: validation accuracy {100 * best['val_accuracy']:.2f} % (epoch {best['epoch']}), {told}" in out
    code, out, _ = command("runs")
    row = next(line for line in out.splitlines() if line.startswith("runs/first/checkpoints")).split()
    assert row[1:3] == ["finished", "2/2"]
    assert f"{best['train_loss']:.4f}" in row and f"{best['val_loss']:.4f}" in row and f"{gap:+.4f}" in row
    code, out, _ = command("evaluate", "runs/first", "--out", "evaluated")
    assert code == 0 and f"val: accuracy {100 * best['val_accuracy']:.2f} %" in out
    model = FineTuneModel.load_checkpoint("runs/first/checkpoints/best_model.pt")
    found = model.predict(images / "val")
    right = [each.label == Path(str(each.path)).parent.name for each in found]
    assert sum(right) / len(right) == pytest.approx(best["val_accuracy"])
    code, out, _ = command(
        "export", "runs/first/checkpoints", "--format", "safetensors", "--out", "model.safetensors"
    )
    assert code == 0 and (tmp_path / "model.safetensors").exists()


def test_the_same_in_python(images, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert check(images).errors == []
    result = finetune(FinetuneConfig(dataset_path=images, name="py", **SMALL))
    assert [row["epoch"] for row in result.history] == [1, 2]
    best = next(row for row in result.history if row["epoch"] == result.metrics["epoch"])
    assert result.train_loss == best["train_loss"]
    assert result.metrics["val_accuracy"] == best["val_accuracy"]
    assert evaluate("runs/py", out="evaluated")["accuracy"] == pytest.approx(best["val_accuracy"])
    with np.load(extract(result.best_model, images / "val", out="features.npz")) as features:
        assert features["pooled"].shape == (9, 512)
    assert export("runs/py", format="safetensors", out=tmp_path / "m.safetensors")["backbone"] == TINY[1]
    (row,) = runs(tmp_path)
    assert (row.state, row.epochs, row.best_epoch, row.go_on) == ("finished", 2, best["epoch"], None)
    assert row.gap == pytest.approx(best["val_loss"] - best["train_loss"])
    with pytest.raises(ConfigError, match="evaluate\\(\\) has no field 'batchsize': did you mean 'batch_size'"):
        evaluate("runs/py", batchsize=3)
    with pytest.raises(ConfigError, match="batch_size = 0: must be a whole number of 1 or more"):
        extract("runs/py", images, batch_size=0)
    with pytest.raises(ConfigError, match="writes nothing"):
        export("runs/py", format="safetensors", out="n.safetensors", verify="m.safetensors")
    with pytest.raises(CheckpointError, match=r"holds no best_model\.pt"):
        evaluate(images)


def test_compare_in_python(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAT_VG_CACHE", str(tmp_path / "cache"))
    settings = {name: value for name, value in SMALL.items() if name != "backbone"}
    found = compare(images, backbones=[TINY[1]], strategies=["full"], seeds=[0], out=tmp_path / "c", **settings)
    assert found == json.loads((tmp_path / "c/comparison.json").read_text())
    assert TINY[1] in json.dumps(found)
    # By a process of its own, the memory of which was measured.
    assert 0.1 < found["cells"][0]["result"]["peak_gib"] < 8
    cells = {"backbones": [TINY[1]], "strategies": ["full"], "seeds": [0]}
    assert compare(images, **cells, out="d", dry_run=True, **settings) == {}
    with pytest.raises(ConfigError, match="compare\\(\\) has no field 'backbone_names'"):
        compare(images, backbone_names=["resnet18"])


def test_predictions_of_files_and_of_images_in_memory_agree(images, tmp_path):
    model = FineTuneModel(TINY[1], 3, pretrained=False, image_size=32, class_names=("field", "sea", "town"))
    model.train()
    path = images / "val/sea/0.png"
    image = Image.open(path)
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    (of_path,) = model.predict(path)
    assert of_path.path == str(path)
    assert sum(of_path.probabilities.values()) == pytest.approx(1)
    assert of_path.probability == max(of_path.probabilities.values())
    for images_in_memory in (image, array, tensor, tensor[None]):
        (found,) = model.predict(images_in_memory)
        assert (found.label, found.labels, found.path) == (of_path.label, (of_path.label,), None)
        assert found.probability == pytest.approx(of_path.probability, abs=1e-6)
    several = model.predict([path, image, str(images / "val/town")], batch_size=2)
    assert [each.path is None for each in several] == [False, True, False, False, False]
    assert model.training
    for wrong, text in (
        (3, "of type int"),
        (array.astype(np.float32), "array of type float32"),
        (tensor[:2], "shape"),
    ):
        with pytest.raises(UserError, match=text):
            model.predict(wrong)
    with pytest.raises(DataError, match="no-such-folder"):
        model.predict(tmp_path / "no-such-folder")
    with pytest.raises(ConfigError, match="batch_size = 0"):
        model.predict(path, batch_size=0)


def test_a_name_that_is_taken_is_numbered_and_a_stopped_run_goes_on(images, tmp_path, train_here, command):
    def named(*more):
        # The fixture's own folders are left out, as the name says where files go.
        return command("train", "--dataset_path", images, *FLAGS, "--name", "a", *more)

    endless = ["--num_epochs", "200", "--early_stopping_patience", "0", "--dataset_path", str(images), "--name", "a"]
    start = [sys.executable, "-m", "sat_vg.backbone_finetuning.train", *FLAGS, *endless, "--resume", "never"]
    life = Life(start, tmp_path, environment(tmp_path), is_fresh=False)
    last = tmp_path / "runs/a/checkpoints/last.pt"
    with none_left([life]):
        assert life.until(last.exists, every=0.05), life.err
        assert "running" in command("runs")[1]
        life.process.send_signal(signal.SIGINT)
        assert life.wait(100) == 130
    code, out, _ = command("runs")
    assert code == 0 and "stopped" in out
    shown = out.split("to go on with runs/a/checkpoints:\n")[1].strip()
    assert shown.startswith("sat-vg train") and "--name a" in shown
    assert "--resume" not in shown, "it would begin anew"
    done = torch.load(last, weights_only=True)["state"]["epoch"]
    # Other settings: another name. The same settings: the run goes on, by the command that was shown.
    code, out, _ = named()
    assert code == 0 and "run: a_2, as another run has the name a" in out
    assert (tmp_path / "runs/a_2/checkpoints/best_model.pt").exists()
    code, out, _ = named("--num_epochs", 200, "--early_stopping_patience", 0, "--dry_run")
    assert code == 0
    code, out, _ = named()
    assert "run: a_3" in out  # a_2 has finished
    assert torch.load(last, weights_only=True)["state"]["epoch"] == done
    code, _, err = named("--log_dir", "elsewhere")
    assert code == 2 and "name = 'a': log_dir = 'elsewhere' also says where the run's files go" in err
    code, _, err = command("train", "--dataset_path", images, *FLAGS, "--name", "a/b")
    assert code == 2 and "name = 'a/b': must be a name for a folder, without slashes" in err


def darker(image):
    return (image * (0.2 + 0.8 * torch.rand(()))).to(image.dtype)


def test_few_steps_on_pre_trained_weights_begin_with_a_probe_and_a_stopped_run_keeps_to_it(images, tmp_path, command):
    weights = tmp_path / "weights.pth"
    torch.save(FineTuneModel(TINY[1], 7, pretrained=False, image_size=32).network.state_dict(), weights)
    flags = ["--dataset_path", str(images), *FLAGS, "--pretrained", "true", "--weights", str(weights), "--name", "b"]
    flags += ["--num_epochs", "20", "--early_stopping_patience", "0"]
    start = [sys.executable, "-m", "sat_vg.backbone_finetuning.train", *flags]
    life = Life(start, tmp_path, environment(tmp_path), is_fresh=False)
    with none_left([life]):
        assert life.until(lambda: "epoch   3/21" in life.out, every=0.05), life.err
        life.process.send_signal(signal.SIGINT)
        assert life.wait(100) == 130
    assert "strategy: lp_ft, a linear probe first, as " in life.out
    assert "learning_rate: 0.001, as strategy = lp_ft" in life.out
    code, out, err = command("train", *flags)
    assert code == 0, err
    assert "another run has the name" not in out and "strategy: " not in out and "epoch   1/21" not in out
    assert "epoch  21/21" in out
    code, out, err = command("train", *flags[:-6], "--num_epochs", "1", "--strategy", "full", "--name", "c")
    assert code == 0, err
    assert "epoch   1/1 " in out and "strategy: " not in out


def test_a_transform_of_ones_own(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {**SMALL, "dataset_path": images, "use_augmentation": False, "num_epochs": 1}
    losses = {}
    for name, workers in (("none", 0), ("one", 0), ("workers", 2)):
        config = FinetuneConfig(**{**settings, "num_workers": workers}, name=name)
        result = finetune(config, None if name == "none" else darker)
        losses[name] = result.history[0]["train_loss"]
    assert losses["one"] == losses["workers"] != losses["none"]
    folders = {"checkpoint_dir": "runs/one/checkpoints", "log_dir": "runs/one/logs"}
    again = finetune(FinetuneConfig(**settings, **folders), darker)  # it has finished
    assert again.metrics == FineTuneModel.load_checkpoint(again.best_model).provenance["metrics"]
    for other in (None, lambda image: image):
        with pytest.raises(CheckpointError, match="the transform given to finetune"):
            finetune(FinetuneConfig(**settings, **folders), other)
    with pytest.raises(UserError, match=r"transform gave torch.float32 \[3, 32, 32\] for an image torch.uint8"):
        finetune(FinetuneConfig(**settings, name="wrong"), lambda image: image / 2)


def test_the_tour_of_the_readme(images, command, tmp_path):
    """Its commands one after the other, on a small network."""
    tour = (REPOSITORY / "README.md").read_text().split("## A tour in 60 seconds")[1]
    commands = tour.split("```bash\n")[1].split("```")[0].splitlines()
    assert len(commands) == 6
    for shown in commands:
        name, *words = [str(images) if word == "DIR" else word for word in shown.split()[1:]]
        more = FLAGS if name == "train" else ()
        code, _, err = command(name, *words, *more)
        assert code == 0, (shown, err)
    for path in ("runs/first/checkpoints/best_model.pt", "evaluation/report.html", "maps.onnx"):
        assert (tmp_path / path).exists(), path


def test_runs_names_what_it_cannot_read(images, tmp_path, command):
    code, _, err = command("runs", tmp_path / "nowhere")
    assert code == 2 and "there is no folder" in err
    code, _, err = command("runs", images)
    assert code == 2 and "no run lies in" in err
    (tmp_path / "x").mkdir()
    (tmp_path / "x/last.pt").write_bytes(b"no archive")
    code, out, _ = command("runs", tmp_path)
    assert code == 0 and "damaged" in out and "cannot be read" in out
    code, out, _ = command("runs", tmp_path, "--json")
    assert [row["state"] for row in json.loads(out)["runs"]] == ["damaged"]
    (tmp_path / "x/last.pt").unlink()
    (tmp_path / "x/last.pt").symlink_to(tmp_path / "moved away")  # a link that leads nowhere any more
    code, out, _ = command("runs", tmp_path)
    assert code == 0 and "damaged" in out and "last.pt" in out


def test_the_snippets_of_the_page(images, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    page = (REPOSITORY / "docs/python.md").read_text()
    snippets = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(snippets) == 3
    small = "".join(f", {name}={value!r}" for name, value in SMALL.items() if name != "backbone")
    for snippet in snippets:
        shown = snippet.replace('"DIR', f'"{images}').replace('backbone="resnet50"', f'backbone="{TINY[1]}"{small}')
        exec(shown, {})
    out = capfd.readouterr().out
    assert "finished" in out.splitlines()[-1]
    assert (tmp_path / "evaluation/report.html").exists() and (tmp_path / "weights.safetensors").exists()
