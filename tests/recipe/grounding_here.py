"""A small set in DIOR-RSVG's layout, a run of grounding on it, and its command in this process."""

import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from conftest import environment
from grounding_files import COLOURS
from lives import Life, none_left
from PIL import Image

from sat_vg.cli import COMMANDS

SMALL = (
    "--image_size", "64", "--width", "48", "--num_heads", "4", "--fusion_layers", "1", "--num_epochs", "2",
    "--batch_size", "2", "--num_threads", "1", "--log_every", "1", "--checkpoint_dir", "ckpt", "--log_dir", "logs",
)  # fmt: skip
RANDOM = ("--backbone", "resnet18", "--weights", "none")
OBJECT = (
    "<object><name>square</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>"
    "<description>{}</description></object>"
)


def write_dior(root: Path) -> Path:
    """12 images of 64 pixels with two squares each; 24 objects in the order of the files: 16 train, 4 val, 4 test."""
    (root / "Annotations").mkdir(parents=True)
    (root / "JPEGImages").mkdir()
    generator = np.random.default_rng(0)
    for number in range(12):
        pixels = np.full((64, 64, 3), 110, dtype=np.uint8) + generator.integers(0, 20, (64, 64, 3), dtype=np.uint8)
        objects = ""
        for half, (name, colour) in enumerate(COLOURS.items()):
            x, y = 32 * half + int(generator.integers(2, 12)), int(generator.integers(2, 44))
            pixels[y : y + 16, x : x + 16] = colour
            phrase = f"a {name} square on the {('left', 'right')[half]}"
            objects += OBJECT.format(x, y, x + 16, y + 16, phrase)
        name = f"{number:05d}"
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.jpg", quality=95)
        xml = f"<annotation><filename>{name}.jpg</filename>{objects}</annotation>"
        (root / "Annotations" / f"{name}.xml").write_text(xml)
    for split, first, last in (("train", 0, 16), ("val", 16, 20), ("test", 20, 24)):
        (root / f"{split}.txt").write_text("".join(f"{index}\n" for index in range(first, last)))
    return root


@pytest.fixture(scope="module")
def dior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dior(tmp_path_factory.mktemp("dior") / "data")


STARTED: list[Life] = []


def start(folder: Path, data: Path, *more: object) -> Life:
    command = [sys.executable, "-m", "sat_vg.grounding.train", "--data", str(data), *SMALL, *map(str, more)]
    STARTED.append(Life(command, folder, environment(folder.parent), is_fresh=False))
    return STARTED[-1]


@pytest.fixture(scope="module")
def whole(dior: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run that nothing happened to."""
    with none_left(STARTED):
        life = start(tmp_path_factory.mktemp("whole") / "run", dior, *RANDOM)
        assert life.wait() == 0, life.err
        assert "data: train 16 phrases about 8 images, val 4 phrases about 2 images, test 4 phrases" in life.out
        assert "done: validation Pr@0.5" in life.out
    return life.folder


@pytest.fixture
def ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """``sat-vg ground COMMAND`` in this process, in a folder: exit code, standard output, standard error."""
    monkeypatch.setenv("SAT_VG_CACHE", str(tmp_path / "cache"))

    def run(*arguments: object, folder: Path = tmp_path) -> tuple[int, str, str]:
        monkeypatch.chdir(folder)
        capfd.readouterr()
        code = import_module(COMMANDS["ground"].module).main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return run
