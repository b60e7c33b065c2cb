"""Nothing is lost: real training processes that are killed, stopped, starved of disk and handed damaged files."""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from conftest import COLOURS, environment, write_image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = [pytest.mark.recipe, pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")]

EPOCHS = 30  # of three steps
FLAGS = [
    "--backbone", "shufflenet_v2_x0_5", "--pretrained", "false", "--image_size", "32", "--batch_size", "6",
    "--micro_batch_size", "3", "--warmup_epochs", "0", "--learning_rate", "3e-3", "--lr_scheduler", "plateau",
    "--lr_step_size", "2", "--early_stopping_patience", "0", "--early_stopping_metric", "val_loss", "--mixup_alpha",
    "0.4", "--dropout", "0.3", "--log_every", "2", "--save_every_steps", "2", "--save_frequency", "2",
    "--strategy", "progressive", "--ema_decay", "0.9", "--log_dir", "logs", "--checkpoint_dir", "ckpt",
]  # fmt: skip
TIMES = {"seconds", "images_per_second"}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("kill") / "images"
    for number, (name, colour) in enumerate(COLOURS.items()):
        for split, count, first in (("train", 6, 0), ("val", 3, 50)):
            for index in range(count):
                write_image(root / split / name / f"{index}.png", colour, 100 * number + first + index)
    return root


def command(images: Path, *more: object) -> list[str]:
    flags = ["--dataset_path", str(images), *FLAGS, "--num_epochs", str(EPOCHS), *map(str, more)]
    return [sys.executable, "-m", "sat_vg.backbone_finetuning.train", *flags]


class Life:
    """One start of the command in ``folder``, in a process group of its own."""

    def __init__(self, folder: Path, images: Path, *more: object) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.ckpt = folder, folder / "ckpt"
        self._out, self._err = (folder.parent / f"{folder.name}.{name}" for name in ("out", "err"))
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                command(images, *more), cwd=folder, env=environment(folder.parent), stdout=out, stderr=err,
                start_new_session=True,
            )  # fmt: skip

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def wait(self, seconds: float = 200) -> int:
        code = self.process.wait(seconds)
        assert "Traceback" not in self.err, self.err
        return code

    def until(self, condition: Callable[[], bool], seconds: float = 120) -> bool:
        """Wait for a condition; False if the process ended before."""
        deadline = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < deadline, (self.out, self.err)
            time.sleep(0.0005)
        return True

    def has_said(self, *starts: str) -> Callable[[], bool]:
        return lambda: any(line.startswith(starts) for line in self.out.splitlines())


def read(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def same(first: object, second: object) -> bool:
    """Equal to the bit, tensors included."""
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[name], second[name]) for name in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def lines_of(folder: Path) -> list[dict]:
    entries = map(json.loads, (folder / "logs/metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in entry.items() if name not in TIMES} for entry in entries]


def scalars_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder / "logs"), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith(("step/", "epoch/"))]
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags if tag.split("/")[1] not in TIMES}


def require_equal(whole: Path, cut: Path) -> None:
    """The same weights, optimizer, history, best model, lines and TensorBoard curves."""
    one, two = (read(folder / "ckpt/last.pt") for folder in (whole, cut))
    for content in (one, two):
        content["config"].pop("num_workers")
        assert content["state"].pop("train_seconds") >= 0
        assert content["state"]["finished"]
    assert all(same(one[name], two[name]) for name in one), [name for name in one if not same(one[name], two[name])]
    one, two = (read(folder / "ckpt/best_model.pt") for folder in (whole, cut))
    for content in (one, two):
        content["config"].pop("num_workers")
    assert same(one, two)
    assert lines_of(whole) == lines_of(cut)
    curves = scalars_of(whole), scalars_of(cut)
    assert curves[0] == curves[1]
    assert len(curves[0]["epoch/val_loss"]) == EPOCHS
    assert not list(cut.glob("*/.*")), "temporary files or locks were left"


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing happened to."""
    life = Life(tmp_path_factory.mktemp("whole") / "run", images, "--num_workers", 0)
    assert life.wait() == 0, life.err
    assert len(lines_of(life.folder)) == EPOCHS + 3 * EPOCHS // 2
    assert len({line["learning_rate"] for line in lines_of(life.folder)}) > 1  # the plateau's history mattered
    assert max(line["epoch"] for line in lines_of(life.folder)) == EPOCHS
    return life.folder


def instants(life: Life, draw: random.Random) -> dict[str, Callable[[], object]]:
    """Ways to wait for an instant: spread over time, and within what is too short to be met by chance."""

    def after(seconds: float) -> None:
        life.until(life.has_said("device:"))
        time.sleep(draw.uniform(0, seconds))

    def while_writing(name: str) -> None:
        life.until(life.has_said("device:"))
        patience = time.monotonic() + 1.5  # a better model may never come
        life.until(lambda: any(life.ckpt.glob(f".{name}.*.tmp")) or time.monotonic() > patience)
        time.sleep(draw.uniform(0, 0.01))

    def in_validation() -> None:
        life.until(life.has_said("device:"))
        seen = {path.name for path in life.ckpt.glob("step_*.pt")}
        ends = {f"step_{step:08d}.pt" for step in range(6, 3 * EPOCHS, 6)} - seen  # saved, and then validated
        life.until(lambda: any((life.ckpt / name).exists() for name in ends))
        time.sleep(draw.uniform(0, 0.05))

    def in_preparation() -> None:
        life.until(life.has_said("data:"))
        time.sleep(draw.uniform(0, 0.4))

    return {
        "any": lambda: after(1.5),
        "early": lambda: after(0.5),
        "checkpoint": lambda: while_writing("step_*"),
        "best model": lambda: while_writing("best_model.pt"),
        "validation": in_validation,
        "preparation": in_preparation,
    }


def kill_often(images: Path, folder: Path, kills: int, seed: int) -> None:
    """Start, kill and start again, then let the run come to its end."""
    draw, groups, seen = random.Random(seed), [], []
    while len(groups) < kills:
        life = Life(folder, images, "--num_workers", 2 * (len(groups) % 2))
        kinds = instants(life, draw)
        kind = ("any", "checkpoint", "validation", "early", "best model", "any", "preparation")[len(groups) % 7]
        kinds[kind]()
        if life.process.poll() is None:
            seen.append(kind)
        else:
            assert life.process.returncode == 0, life.err  # it came to its end before the instant
            pytest.fail(f"the run was over after {len(groups)} kills; give it more EPOCHS")
        # The parent alone, so that its workers are orphans, or all of them.
        (os.kill if draw.random() < 0.5 else os.killpg)(life.process.pid, signal.SIGKILL)
        assert life.wait() == -signal.SIGKILL
        groups.append(life.process.pid)
    assert len(set(seen)) >= 5, seen
    life = Life(folder, images, "--num_workers", 0)
    assert life.wait() == 0, life.err
    deadline = time.monotonic() + 15
    for group in groups:
        with suppress(ProcessLookupError):
            while time.monotonic() < deadline:
                os.killpg(group, 0)
                time.sleep(0.1)
            pytest.fail("workers outlived their parent")


def test_twenty_kills_at_any_instant_change_nothing(images, whole, tmp_path):
    kill_often(images, tmp_path / "run", kills=20, seed=1)
    require_equal(whole, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_hundred_kills_change_nothing(images, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "EPOCHS", 160)
    whole = Life(tmp_path / "whole", images, "--num_workers", 0)
    assert whole.wait() == 0, whole.err
    kill_often(images, tmp_path / "run", kills=100, seed=2)
    require_equal(whole.folder, tmp_path / "run")


def test_signals_of_schedulers_stop_the_run_so_that_it_goes_on(images, whole, tmp_path):
    draw = random.Random(3)
    signals = (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGTERM)
    for number, sent in enumerate(signals):
        life = Life(tmp_path / "run", images, "--num_workers", 2 * (number % 2))
        kind = ("any", "validation", "checkpoint", "validation", "preparation")[number]
        instants(life, draw)[kind]()
        began = time.monotonic()
        os.killpg(life.process.pid, sent)
        if number == 2:  # as coreutils' timeout does
            with suppress(ProcessLookupError):
                os.killpg(life.process.pid, sent)
        code = life.wait(60)
        assert time.monotonic() - began < 30
        assert code == (130 if sent == signal.SIGINT else 75), (kind, life.err)
        name = "Ctrl-C" if sent == signal.SIGINT else sent.name
        if kind in ("preparation", "any") and "saved in" not in life.err:  # the training had not begun
            assert life.err.strip() == f"stopped at once by {name}; what was saved before is untouched"
        else:
            assert f"stopped by {name} in epoch " in life.err
            assert "the same command goes on from there" in life.err
    life = Life(tmp_path / "run", images, "--num_workers", 0)
    assert life.wait() == 0, life.err
    assert "going on with" in life.out
    require_equal(whole, tmp_path / "run")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks into /proc")
def test_a_signal_while_libraries_are_loaded_ends_the_command_at_once(images, tmp_path):
    for sent, code in ((signal.SIGTERM, 75), (signal.SIGINT, 130)):
        life = Life(tmp_path / "run", images)
        maps = Path(f"/proc/{life.process.pid}/maps")
        assert life.until(lambda maps=maps: "libtorch" in maps.read_text())
        life.process.send_signal(sent)
        assert life.wait(30) == code
        assert life.err.startswith("stopped at once by ")
        assert not (tmp_path / "run/ckpt").exists()


@contextmanager
def small_disk(folder: Path):
    """A file system of a few MiB at ``folder``; what is given to the yielded function becomes its size in MiB."""

    def resize(mebibytes: int) -> None:
        options = f"remount,size={mebibytes}m"
        subprocess.run(["mount", "-o", options, str(folder)], check=True, timeout=20)

    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip("no file system can be mounted here, so there is no disk to fill")
    try:
        yield resize
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, timeout=20)


def test_a_full_disk_leaves_the_last_good_state(images, whole, tmp_path):
    if not shutil.which("mount"):
        pytest.skip("there is no mount, so there is no disk to fill")
    with small_disk(tmp_path / "run") as resize:
        steps = []
        for mebibytes in (4, 8, 12):  # a state takes 4.3 MiB, the best model 1.5
            resize(mebibytes)
            life = Life(tmp_path / "run", images)
            assert life.wait() == 1, (mebibytes, life.out, life.err)
            assert "cannot be written" in life.err
            assert "run the same command again" in life.err
            states = list((tmp_path / "run/ckpt").glob("*.pt"))
            steps.append(max((read(path).get("state", {"step": 0})["step"] for path in states), default=0))
        assert steps == sorted(steps)
        assert steps[-1] > 0  # the last disk had room for a state
        resize(64)
        life = Life(tmp_path / "run", images)
        assert life.wait() == 0, life.err
        require_equal(whole, tmp_path / "run")


@pytest.fixture
def finished(images, tmp_path, monkeypatch, capfd):
    """A small finished run with three states, and a function that runs its command again in this process."""
    from sat_vg.backbone_finetuning.train import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAT_VG_CACHE", str(tmp_path / "cache"))

    def run() -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(command(images, "--num_epochs", 2, "--save_every_steps", 1, "--max_checkpoints", 3)[3:])
        return (code, *capfd.readouterr())

    assert run()[0] == 0
    shutil.copytree("ckpt", "kept")
    return run


def put_back() -> None:
    shutil.rmtree("ckpt")
    shutil.copytree("kept", "ckpt")
    Path("ckpt/last.pt").unlink()
    Path("ckpt/last.pt").hardlink_to("ckpt/step_00000006.pt")


def test_a_last_state_that_is_cut_or_altered_gives_way_to_the_one_before(finished):
    whole = Path("kept/step_00000006.pt").read_bytes()
    want = [read(Path("kept") / name) for name in ("step_00000006.pt", "best_model.pt")]
    damages = [whole[: len(whole) * tenth // 10] for tenth in range(10)]
    for place in (0, len(whole) // 3, len(whole) - 10):
        damages.append(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    for number, damage in enumerate(damages):
        put_back()
        with Path("ckpt/last.pt").open("r+b") as file:  # in place: the file under its other name is the same one
            file.write(damage)
            file.truncate(len(damage))
        code, out, err = finished()
        assert code == 0, (number, err)
        assert "Traceback" not in err
        assert "cannot be read" in out or "no file of plain tensors" in out
        assert "going on with ckpt/step_00000005.pt: " in out
        got = [read(Path("ckpt") / name) for name in ("step_00000006.pt", "best_model.pt")]
        for one, two in zip(want, got, strict=True):
            for content in (one, two):
                content.get("state", {}).pop("train_seconds", None)
            assert all(same(one[name], two[name]) for name in one), number
        assert read(Path("ckpt/last.pt"))["state"]["finished"]


def test_without_a_sound_state_the_way_out_is_named(finished):
    for path in Path("ckpt").glob("step_*.pt"):
        path.write_bytes(path.read_bytes()[:-1])
    code, _, err = finished()
    assert code == 2
    assert "Traceback" not in err
    for part in ("no state of the run can be read", "last.pt", "step_00000004.pt", "--resume never"):
        assert part in err, part


def test_two_runs_in_one_folder_are_refused_and_a_dead_one_is_not(images, tmp_path):
    first = Life(tmp_path / "run", images, "--num_workers", 2, "--num_epochs", 400)
    assert first.until(lambda: (first.ckpt / "last.pt").exists())
    lines = (tmp_path / "run/logs/metrics.jsonl").read_text().splitlines()
    refused = subprocess.run(
        command(images, "--num_epochs", 400), cwd=tmp_path / "run", env=environment(tmp_path), stderr=subprocess.PIPE
    )
    assert refused.returncode == 2, refused.stderr
    assert b"is in use by another run" in refused.stderr
    assert f"process {first.process.pid} on ".encode() in refused.stderr
    assert first.process.poll() is None
    first.process.kill()  # the parent alone: its workers shall not keep the lock
    first.process.wait()
    second = Life(tmp_path / "run", images, "--num_epochs", 400)
    assert second.until(second.has_said("going on with"))
    second.process.send_signal(signal.SIGTERM)
    assert second.wait(60) == 75
    assert not list((tmp_path / "run").glob("*/.lock"))
    assert (tmp_path / "run/logs/metrics.jsonl").read_text().splitlines()[: len(lines)] == lines


def test_folders_that_cannot_be_written_fail_before_training(images, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "ckpt").write_text("a file in place of the folder")
    life = Life(folder, images)
    assert life.wait() == 2
    assert "ckpt' cannot be written to" in life.err
    assert "--checkpoint_dir DIR" in life.err
    assert "phases:" not in life.out


def test_saving_often_changes_nothing(images, whole, tmp_path):
    often = ("--save_every_steps", 1, "--save_every_minutes", 1e-9, "--save_frequency", 1, "--max_checkpoints", 1)
    life = Life(tmp_path / "run", images, *often)
    assert life.wait() == 0, life.err
    names = sorted(path.name for path in life.ckpt.iterdir())
    assert names == ["best_model.pt", "last.pt", f"step_{3 * EPOCHS:08d}.pt"]
    for part in ("network", "optimizer"):
        assert same(read(whole / "ckpt/last.pt")[part], read(life.ckpt / "last.pt")[part])
    assert lines_of(whole) == lines_of(life.folder)
    assert all(math.isfinite(line["gradient_norm"]) for line in lines_of(whole) if "val_loss" not in line)
