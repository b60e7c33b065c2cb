"""The main job as users run it: real processes, real files."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import TINY, environment, train_command, write_image

from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel

pytestmark = pytest.mark.recipe


def state_dicts_equal(first: Path, second: Path) -> bool:
    one, two = (torch.load(path, weights_only=True)["state_dict"] for path in (first, second))
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def weights_of_run(path: Path) -> dict:
    return torch.load(path, weights_only=True)["network"]


def test_images_in_folders_to_extractor(train_here, class_folders):
    """In a process of its own: test_quickstart in test_docs.py."""
    run = train_here(
        "--dataset_path", class_folders, "--backbone", "resnet18", "--num_epochs", 3, "--mixed_precision", "false",
        draws=True,
    )  # fmt: skip
    assert run.code == 0, run.err
    assert "27 " in run.out
    for part in ("done: validation accuracy", "best_model.pt", "layer4: 512 channels at stride 32", "--logdir"):
        assert part in run.out, part
    assert "\r" not in run.err  # no progress bar where there is no terminal
    assert run.out.count("epoch ") - run.out.count("(epoch ") == 3

    step_lines = [line for line in run.lines if "val_accuracy" not in line]
    assert [line["epoch"] for line in run.epochs] == [1, 2, 3]
    assert {"phase", "epoch", "step", "learning_rate", "train_loss"} <= step_lines[0].keys()
    assert {"val_loss", "val_accuracy", "seconds", "images_per_second"} <= run.epochs[0].keys()
    assert [line["step"] for line in run.epochs] == [5, 10, 15]
    assert [line["step"] for line in step_lines] == list(range(2, 16, 2))
    assert all(0 <= line["val_accuracy"] <= 1 for line in run.epochs)

    content = torch.load(run.best_model, weights_only=True)
    assert content["class_names"] == ["field", "sea", "town"]
    assert content["config"]["dataset_path"] == str(class_folders)
    best = max(line["val_accuracy"] for line in run.epochs)
    assert content["metrics"]["val_accuracy"] == best
    for name in ("confusion_matrix.png", "training_images.png", "learning_curves.png"):
        assert (run.folder / "logs" / name).stat().st_size > 5000

    # In a process that is not the training's, the loaded model predicts, to the bit, what the run's weights predict.
    images = torch.randn(4, 3, 32, 32)
    model = FineTuneModel.load_checkpoint(run.best_model)
    network = FineTuneModel("resnet18", 3, pretrained=False, image_size=32).network.eval()
    network.load_state_dict(content["state_dict"], assign=True)  # with their layout
    with torch.no_grad():
        features = model.get_feature_extractor()(images)["layer4"]
        assert torch.equal(network(images), model(images))
        assert torch.equal(torch.nn.Sequential(*list(network.children())[:-2])(images), features)


def test_the_reported_accuracy_is_that_of_the_saved_weights(train_here, class_folders):
    run = train_here(*TINY, "--dataset_path", class_folders, "--mixed_precision", "false")
    assert run.code == 0, run.err
    model = FineTuneModel.load_checkpoint(run.best_model)
    from sat_vg.backbone_finetuning.data.reading.decoding import decode_rgb
    from sat_vg.backbone_finetuning.data.sources.splits import load_class_folders

    val = load_class_folders(class_folders).val
    transforms = model.get_feature_extractor().transforms()
    with torch.no_grad():
        logits = model(torch.stack([transforms(decode_rgb(path)) for path in val.paths]))
    labels = torch.tensor(val.labels)
    best = max(run.epochs, key=lambda line: (line["val_accuracy"], -line["val_loss"]))
    assert (logits.argmax(1) == labels).float().mean().item() == pytest.approx(best["val_accuracy"])
    assert torch.nn.functional.cross_entropy(logits, labels).item() == pytest.approx(best["val_loss"], rel=1e-4)


@pytest.mark.slow  # test_kill.py sends it among other signals
@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_leaves_a_run_that_goes_on_to_the_same_bits(train, class_folders, tmp_path, workers):
    options = ("--dataset_path", class_folders, "--num_epochs", 12, "--mixup_alpha", 0.5, "--dropout", 0.3,
               "--lr_scheduler", "plateau", "--lr_step_size", 2, "--early_stopping_patience", 0,
               "--num_workers", workers)  # fmt: skip
    whole = train(*options, folder="whole")
    assert whole.code == 0, whole.err

    folder = tmp_path / "cut"
    process = subprocess.Popen(
        train_command(folder, *options),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(tmp_path),
        cwd=tmp_path,
        start_new_session=True,
    )
    metrics = folder / "logs/metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") >= 6):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, (out, err)
    assert "Traceback" not in err
    assert "the same command goes on from there" in err
    assert "done" not in out

    resumed = train(*options, folder="cut")
    assert resumed.code == 0, resumed.err
    assert "going on with" in resumed.out
    assert state_dicts_equal(whole.best_model, resumed.best_model)
    first, second = (weights_of_run(run.folder / "ckpt/last.pt") for run in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)
    wanted = ("phase", "epoch", "step", "learning_rate", "train_loss", "val_loss", "val_accuracy")
    rows = [[{k: line.get(k) for k in wanted} for line in run.lines] for run in (whole, resumed)]
    assert rows[0] == rows[1]


@pytest.mark.slow  # test_kill.py kills more often, over the same change of workers
def test_resume_across_a_kill_with_another_number_of_workers(train, class_folders, tmp_path):
    options = ("--dataset_path", class_folders, "--num_epochs", 8)
    whole = train(*options, folder="whole")
    process = subprocess.Popen(
        train_command(tmp_path / "cut", *options), stdout=subprocess.DEVNULL, env=environment(tmp_path), cwd=tmp_path
    )
    deadline = time.monotonic() + 120
    while not list((tmp_path / "cut/ckpt").glob("step_00000015.pt")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()
    resumed = train(*options, "--num_workers", 2, folder="cut")
    assert resumed.code == 0, resumed.err
    assert state_dicts_equal(whole.best_model, resumed.best_model)
    first, second = (weights_of_run(run.folder / "ckpt/last.pt") for run in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert [line["epoch"] for line in resumed.epochs] == list(range(1, 9))
    assert [line["train_loss"] for line in resumed.epochs] == [line["train_loss"] for line in whole.epochs]


def test_a_finished_run_says_so_and_other_settings_are_refused(train_here, class_folders):
    options = (*TINY, "--dataset_path", class_folders)
    first = train_here(*options)
    stamp = first.best_model.stat().st_mtime_ns
    again = train_here(*options)
    assert again.code == 0
    assert "has finished" in again.out
    assert "done: validation accuracy" in again.out
    assert first.best_model.stat().st_mtime_ns == stamp
    other = train_here(*options, "--learning_rate", 0.01, "--seed", 5)
    assert other.code == 2
    for part in ("learning_rate: the run has 0.0003, now 0.01", "seed: the run has 0, now 5", "--resume never"):
        assert part in other.err, part
    write_image(class_folders / "train/sea/new.png", (1, 2, 3), 0)
    assert "the images" in train_here(*options).err


def test_resume_never_moves_the_old_run_aside(train_here, class_folders):
    first = train_here(*TINY, "--dataset_path", class_folders)
    old = first.best_model.read_bytes()
    second = train_here(*TINY, "--dataset_path", class_folders, "--seed", 1, "--resume", "never")
    assert second.code == 0, second.err
    assert "moved to" in second.out
    assert (second.folder / "ckpt/earlier_run_1/best_model.pt").read_bytes() == old
    assert (second.folder / "logs/earlier_run_1/metrics.jsonl").exists()
    assert len(second.epochs) == 2


@pytest.mark.parametrize(
    ("backbone", "more"),
    [
        ("mobilenet_v2", ()),
        ("efficientnet_b0", ()),
        ("vit_b_16", ("--strategy", "last_layers")),
        pytest.param("vit_b_16", (), marks=pytest.mark.slow),  # its states take a gigabyte each
    ],
)
def test_the_other_families_run(train_here, class_folders, backbone, more):
    run = train_here("--dataset_path", class_folders, "--backbone", backbone, "--num_epochs", 1, *more)
    assert run.code == 0, run.err
    extractor = FineTuneModel.load_checkpoint(run.best_model).get_feature_extractor()
    assert list(extractor(torch.randn(1, 3, 48, 80)).values())[-1].shape[1] == extractor.num_channels


def test_the_command_sat_vg_and_dry_run(class_folders, tmp_path):
    program = shutil.which("sat-vg", path=str(Path(sys.executable).parent))
    assert program
    flags = train_command(tmp_path / "run", "--dataset_path", class_folders, "--backbone", "resnet18",
                          "--freeze_early_layers", "true", "--unfreeze_layers", "layer3,layer4",
                          "--dry_run")[3:]  # fmt: skip
    done = subprocess.run([program, "train", *flags], capture_output=True, text=True, env=environment(tmp_path))
    assert done.returncode == 0, done.stderr
    for part in ("field", "phase 1, partial: 2 epochs", "steps per epoch: 5, of 5 or 6 images",
                 "uint8 [6, 3, 32, 32]", "nothing was trained"):  # fmt: skip
        assert part in done.stdout, part
    rows = {line.split()[0]: line.split()[-1] for line in done.stdout.splitlines() if line.endswith((" yes", " no"))}
    assert rows == {"stem": "no", "layer1": "no", "layer2": "no", "layer3": "yes", "layer4": "yes", "head": "yes"}
    assert not (tmp_path / "run").exists()
    assert subprocess.run([program, "trian"], capture_output=True).returncode == 2


def test_frozen_stages_stay_to_the_bit(train_here, class_folders, tmp_path):
    torch.manual_seed(0)
    start = FineTuneModel("resnet18", 9, pretrained=False, image_size=32, seed=4)
    start.save_checkpoint(tmp_path / "start.pt")
    run = train_here("--dataset_path", class_folders, "--backbone", "resnet18", "--weights", tmp_path / "start.pt",
                "--pretrained", "true", "--freeze_early_layers", "true", "--unfreeze_layers", "layer4")  # fmt: skip
    assert run.code == 0, run.err
    end = torch.load(run.best_model, weights_only=True)["state_dict"]
    moved = {name.split(".")[0] for name, value in start.network.state_dict().items()
             if name.split(".")[0] != "fc" and not torch.equal(value, end[name])}  # fmt: skip
    assert moved == {"layer4"}


def test_early_stopping(train_here, class_folders):
    # A learning rate that changes nothing: no epoch after the first one can be better.
    run = train_here(*TINY, "--dataset_path", class_folders, "--num_epochs", 9, "--early_stopping_patience", 2,
                "--learning_rate", 1e-12, "--min_lr", 0, "--early_stopping_metric", "val_accuracy")  # fmt: skip
    assert run.code == 0, run.err
    best = torch.load(run.best_model, weights_only=True)["metrics"]["epoch"]
    assert len(run.epochs) == best + 2 < 9
    assert "stopped early" in run.out


def test_a_loss_that_leaves_the_numbers(train_here, class_folders):
    run = train_here(*TINY, "--dataset_path", class_folders, "--learning_rate", 1e38, "--optimizer", "sgd",
                     "--num_epochs", 3, "--gradient_clip", 0)  # fmt: skip
    assert run.code == 1
    assert "Traceback" not in run.err
    for part in ("the loss is ", " at step ", "learning rate ", "Lower --learning_rate", "Images of the batch"):
        assert part in run.err, part
    assert not (run.folder / "ckpt/last.pt").exists()
    assert all(math.isfinite(line["train_loss"]) for line in run.lines)


def test_a_good_checkpoint_outlives_a_later_nan(train_here, class_folders):
    run = train_here(*TINY, "--dataset_path", class_folders, "--num_epochs", 2, "--lr_scheduler", "cosine")
    assert run.code == 0
    last = run.folder / "ckpt/last.pt"
    states = {
        path: torch.load(path, weights_only=True) for path in last.parent.glob("*.pt") if path != run.best_model
    }
    (content,) = (content for content in states.values() if content["state"]["step"] == 5)
    next(iter(content["network"].values())).fill_(1e38)  # a number, as a state may hold, that makes none
    for path in states:
        path.unlink()
    torch.save(content, last)
    before, best = last.read_bytes(), run.best_model.read_bytes()
    broken = train_here(*TINY, "--dataset_path", class_folders, "--num_epochs", 2, "--lr_scheduler", "cosine")
    assert broken.code == 1
    assert "the loss is nan at step 5 (epoch 2" in broken.err
    assert last.read_bytes() == before
    assert run.best_model.read_bytes() == best


def test_a_validation_that_leaves_the_numbers_is_never_the_best(train_here, class_folders):
    # One step an epoch: the weights leave the numbers after the last training loss was looked at.
    run = train_here(*TINY, "--dataset_path", class_folders, "--learning_rate", 1e38, "--optimizer", "sgd",
                     "--num_epochs", 1, "--gradient_clip", 0, "--batch_size", 32)  # fmt: skip
    assert run.code == 1, run.out
    assert "the validation loss is nan after step 1" in run.err
    assert not list((run.folder / "ckpt").glob("*.pt"))
    assert run.epochs == []


def test_a_gradient_that_leaves_the_numbers_is_never_saved(train_here, class_folders, monkeypatch):
    from sat_vg.backbone_finetuning.training import loop

    sound = loop.train_step

    def train_step(training, source, batch, learning_rate, step, *more):
        result = sound(training, source, batch, learning_rate, step, *more)
        return result._replace(gradient_norm=result.gradient_norm * math.nan) if step == 7 else result

    monkeypatch.setattr(loop, "train_step", train_step)
    run = train_here(
        *TINY, "--dataset_path", class_folders, "--num_epochs", 3, "--save_every_steps", 3, "--log_every", 100
    )
    assert run.code == 1
    assert "the norm of the gradient is nan at step 7 (epoch 2" in run.err
    assert "Images of the batch" in run.err
    content = torch.load(run.folder / "ckpt/last.pt", weights_only=True)
    assert content["state"]["step"] == 6
    assert all(value.isfinite().all() for value in content["network"].values())
    assert torch.load(run.best_model, weights_only=True)["metrics"]["epoch"] == 1
    monkeypatch.setattr(loop, "train_step", sound)
    again = train_here(*TINY, "--dataset_path", class_folders, "--num_epochs", 3, "--log_every", 100)
    assert again.code == 0
    assert [line["step"] for line in again.epochs] == [5, 10, 15]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_vanishes_during_the_run(train_here, class_folders, tmp_path, workers):
    over = threading.Event()

    def remove_one():
        while not ((tmp_path / "run/ckpt/last.pt").exists() or over.wait(0.01)):
            pass
        (class_folders / "train/sea/train_4.jpg").unlink()

    endless = ("--num_epochs", 500, "--num_workers", workers, "--cache", "off")
    with ThreadPoolExecutor(1) as other:
        other.submit(remove_one)
        try:
            run = train_here(*TINY, "--dataset_path", class_folders, *endless)
        finally:
            over.set()
    assert run.code == 1, run.err
    assert "Traceback" not in run.err
    assert run.err.startswith("error: cannot read the image")
    assert "train_4.jpg" in run.err
    assert "--resume never" in run.err


def test_going_on_in_another_folder_takes_the_best_model_along(train_here, class_folders, tmp_path):
    first = train_here(*TINY, "--dataset_path", class_folders, "--save_frequency", 1, "--max_checkpoints", 5)
    state = first.folder / "ckpt/step_00000005.pt"
    second = train_here(*TINY, "--dataset_path", class_folders, "--resume", state, folder="other")
    assert second.code == 0, second.err
    assert state_dicts_equal(first.best_model, second.best_model)
    first.best_model.unlink()
    lost = train_here(*TINY, "--dataset_path", class_folders)
    assert lost.code == 2
    assert "best_model.pt is gone" in lost.err


def test_metrics_lines_are_json_that_others_can_read(train_here, class_folders):
    run = train_here(*TINY, "--dataset_path", class_folders, "--num_epochs", 1)
    for line in (run.folder / "logs/metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
