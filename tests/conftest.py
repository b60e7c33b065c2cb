"""Real tiny data, a real training process, and the real data and weights where they are at hand."""

import gc
import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from forks import blank_records
from PIL import Image

gc.disable()  # until all tests are imported
pytest.register_assert_rewrite("grounding_here")
REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"

# One class is bright at the left, one at the top, one all over: learnable from augmented images by brightness alone.
COLOURS = {"field": (40, 160, 60), "sea": (20, 60, 150), "town": (170, 160, 150)}

# For runs in which the network does not matter, and the one of ``train_command``: its files take 30 MiB instead of
# the 430 of a ResNet-18, and a run a third of the time. It has no batch norm.
TINY = ("--backbone", "squeezenet1_1")


def pytest_collection_finish() -> None:
    gc.freeze()  # what is imported stays, and need not be looked through again and again
    gc.enable()


def write_image(path: Path, colour: tuple[int, int, int], seed: int, size: int = 40) -> None:
    generator = np.random.default_rng(seed)
    noise = generator.normal(0, 12, (size, size, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(path)


def write_classes(root: Path, train: int = 9, val: int = 3) -> Path:
    """Three classes of PNG files: batches of 5 and 6 where ``batch_size`` is 6."""
    for number, (name, colour) in enumerate(COLOURS.items()):
        for split, count, first in (("train", train, 0), ("val", val, 50)):
            for index in range(count):
                write_image(root / split / name / f"{index}.png", colour, 100 * number + first + index)
    return root


@pytest.fixture
def class_folders(tmp_path: Path) -> Path:
    """train/ and val/ with three classes: 9 + 3 images each, JPEG and PNG."""
    root = tmp_path / "images"
    for number, (name, colour) in enumerate(COLOURS.items()):
        for split, count, first_seed in (("train", 9, 0), ("val", 3, 50)):
            for index in range(count):
                ending = "png" if index % 2 else "jpg"
                write_image(
                    root / split / name / f"{split}_{index}.{ending}", colour, 100 * number + first_seed + index
                )
    return root


@dataclass
class Run:
    """What a finished training process left."""

    code: int
    out: str
    err: str
    folder: Path

    @property
    def lines(self) -> list[dict]:
        return [json.loads(line) for line in (self.folder / "logs/metrics.jsonl").read_text().splitlines()]

    @property
    def epochs(self) -> list[dict]:
        return [line for line in self.lines if "val_accuracy" in line]

    @property
    def best_model(self) -> Path:
        return self.folder / "ckpt/best_model.pt"


def train_command(folder: Path, *arguments: object) -> list[str]:
    """The training command on a small model, with outputs below ``folder``."""
    small = {
        "backbone": TINY[1],
        "pretrained": "false",
        "image_size": "32",
        "batch_size": "6",
        "num_epochs": "2",
        "warmup_epochs": "0",
        "log_every": "2",
        "num_workers": "0",
        "log_dir": f"{folder}/logs",
        "checkpoint_dir": f"{folder}/ckpt",
    }
    given = [str(argument) for argument in arguments]
    flags = [part for name, value in small.items() if f"--{name}" not in given for part in (f"--{name}", value)]
    return [sys.executable, "-m", "sat_vg.backbone_finetuning.train", *flags, *given]


def environment(folder: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "SAT_VG_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1", **more}


@pytest.fixture
def train(tmp_path: Path):
    """Run the training command in a process of its own."""

    def run(*arguments: object, folder: str = "run", **more: str) -> Run:
        target = tmp_path / folder
        done = subprocess.run(
            train_command(target, *arguments),
            capture_output=True,
            text=True,
            env=environment(tmp_path, **more),
            cwd=tmp_path,
            timeout=300,
        )
        return Run(done.returncode, done.stdout, done.stderr, target)

    return run


def train_in(folder: Path, *arguments: object) -> Run:
    """Run the training command's ``main`` in this process, for fixtures that many tests share."""
    from sat_vg.backbone_finetuning.train import main

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAT_VG_CACHE", str(folder / "cache"))
        return Run(main(train_command(folder / "run", *arguments)[3:]), "", "", folder / "run")


@pytest.fixture
def train_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Run the training command's ``main`` in this process, which saves loading torch once more.

    Its pictures are blank but with ``draws``, as drawing takes a third of the time of a run as small as these.
    """
    from sat_vg.backbone_finetuning.train import main

    def run(*arguments: object, folder: str = "run", draws: bool = False) -> Run:
        target = tmp_path / folder
        monkeypatch.setenv("SAT_VG_CACHE", str(tmp_path / "cache"))
        monkeypatch.chdir(tmp_path)
        capfd.readouterr()
        with monkeypatch.context() as patch:
            if not draws:
                blank_records(patch.setattr)
            code = main(train_command(target, *arguments)[3:])
        out, err = capfd.readouterr()
        return Run(code, out, err, target)

    return run


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """``sat-vg COMMAND`` in this process, in ``tmp_path``: exit code, standard output, standard error."""
    from sat_vg.cli import COMMANDS

    monkeypatch.setenv("SAT_VG_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = import_module(COMMANDS[name].module).main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return run


@contextmanager
def small_disk(folder: Path, mebibytes: int):
    """A file system of a few MiB at ``folder``; what is given to the yielded function becomes its size in MiB."""
    if not shutil.which("mount"):
        pytest.skip("there is no mount, so there is no disk to fill")

    def resize(mebibytes: int) -> None:
        options = f"remount,size={mebibytes}m"
        subprocess.run(["mount", "-o", options, str(folder)], check=True, timeout=20)

    folder.mkdir()
    made = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)]
    if subprocess.run(made, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here, so there is no disk to fill")
    try:
        yield resize
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, timeout=20)


@pytest.fixture
def mobilenet_weights() -> Path:
    path = SHARED / "weights/mobilenet_v2-imagenet.pth"
    if not path.exists():
        pytest.skip(f"real ImageNet weights are not at hand: no {path}")
    return path


@pytest.fixture
def shard_command(command, monkeypatch: pytest.MonkeyPatch):
    """``sat-vg shard`` in this process: exit code, standard output, standard error."""
    monkeypatch.delenv("SAT_VG_SHARD_SOURCE", raising=False)
    return partial(command, "shard")


@pytest.fixture
def shards(class_folders: Path, shard_command, tmp_path: Path) -> Path:
    """The class folders as 9 + 3 shards of 3 images."""
    code, _, err = shard_command(class_folders, "--out", tmp_path / "shards", "--images_per_shard", 3)
    assert code == 0, err
    assert len(list((tmp_path / "shards").glob("*.tar"))) == 12
    return tmp_path / "shards"
