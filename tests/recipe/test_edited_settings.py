"""The settings file of the package, edited as the documents say: the training command takes what stands there."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import environment

import sat_vg

MODULE = "sat_vg/backbone_finetuning/configs/finetune_config.py"


@pytest.fixture
def edited(tmp_path: Path):
    """Run the training command, or another program, with a copy of the package whose settings file was edited."""

    def run(
        edits: dict[str, str], at_the_end: str, *arguments: str, program: tuple[str, ...] = ("-m", "sat_vg", "train")
    ) -> tuple[int, str, str]:
        shutil.copytree(Path(sat_vg.__file__).parent, tmp_path / "sat_vg")
        path = tmp_path / MODULE
        text = path.read_text(encoding="utf-8")
        for name, line in edits.items():
            text, count = re.subn(rf"^    {name}: .* = .*$", f"    {line}", text, flags=re.MULTILINE)
            assert count == 1, name
        path.write_text(f"{text}\n{at_the_end}\n", encoding="utf-8")
        done = subprocess.run(
            [sys.executable, *program, *arguments],
            capture_output=True,
            text=True,
            env=environment(tmp_path, PYTHONPATH=str(tmp_path)),
            cwd=tmp_path,
            timeout=300,
        )
        return done.returncode, done.stdout, done.stderr

    return run


EDITS = {
    "backbone": 'backbone: str = "custom_cnn"',
    "num_epochs": "num_epochs: int = 3",
    "learning_rate": "learning_rate: float = 5e-4",
    "batch_size": "batch_size: int = 16",
}


@pytest.mark.parametrize(
    ("edits", "at_the_end", "flags", "wanted"),
    [
        (EDITS, "", [], {"backbone": "custom_cnn", "num_epochs": 3, "learning_rate": "0.0005", "batch_size": 16}),
        (EDITS, "", ["--num_epochs", "4"], {"backbone": "custom_cnn", "num_epochs": 4}),
        (
            {},
            "config = FinetuneConfig(backbone='custom_cnn', num_epochs=20, pretrained=True)",
            [],
            {"backbone": "custom_cnn", "num_epochs": 20, "pretrained": "true", "image_size": 64},
        ),
        (EDITS, "config = FinetuneConfig(num_epochs=5)", [], {"backbone": "custom_cnn", "num_epochs": 5}),
        (
            EDITS,
            "config = FinetuneConfig(num_epochs=5, dataset_path=Path('images'))",
            ["--config", "c.yaml"],
            {"backbone": "custom_cnn", "num_epochs": 6, "dataset_path": "images", "image_size": "null"},
        ),
        (
            {"dataset_path": 'dataset_path: str | None = "images"', "log_dir": 'log_dir: str = "here"'},
            "",
            [],
            {"backbone": "resnet50", "dataset_path": "images", "log_dir": "here", "num_epochs": 20},
        ),
    ],
)
def test_edits_outrank_the_scenes_and_are_outranked_by_yaml_and_flags(
    edited, tmp_path, edits, at_the_end, flags, wanted
):
    (tmp_path / "c.yaml").write_text("num_epochs: 6\n")
    code, out, err = edited(edits, at_the_end, *flags, "--print_config")
    assert code == 0, err
    for name, value in wanted.items():
        assert f"\n{name}: {value}\n" in f"\n{out}", name


def test_a_run_takes_the_edits_and_says_so(edited, class_folders):
    code, out, err = edited(
        {"num_epochs": "num_epochs: int = 2"},
        "config = FinetuneConfig(backbone='custom_cnn', pretrained=False, image_size=32, log_every=1)",
        *("--dataset_path", str(class_folders), "--dry_run", "--log_every", "5"),
    )
    assert code == 0, err
    line = next(line for line in out.splitlines() if MODULE in line)
    for part in ("num_epochs = 2", "backbone = 'custom_cnn'", "image_size = 32"):
        assert part in line
    assert "log_every" not in line
    assert "model: custom_cnn" in out
    assert "full for 2 epochs" in out
    assert "scenes" not in out


@pytest.mark.parametrize(
    ("edits", "at_the_end", "part"),
    [
        ({}, "config = {'backbone': 'resnet18'}", "must be a FinetuneConfig"),
        ({}, "config = FinetuneConfig(num_epoch=3)", "'num_epoch': did you mean 'num_epochs'?"),
        ({}, "config = FinetuneConfig(num_epochs=-3)", "num_epochs = -3: must be a whole number"),
        ({"num_epochs": 'num_epochs: int = "many"'}, "", "num_epochs = 'many': must be a whole number"),
        ({"num_epochs": "num_epochs = 50"}, "", "has lost its field 'num_epochs'"),
    ],
)
def test_a_wrong_edit_gets_a_sentence(edited, edits, at_the_end, part):
    code, _, err = edited(edits, at_the_end, "--print_config")
    assert code == 2
    assert part in err
    assert "Traceback" not in err


# One process of the edited copy runs one command after another, as loading torch takes most of the time of each.
IN_TURN = """
import shlex, sys
from sat_vg import cli
for line in sys.argv[1:]:
    sys.argv = ["sat-vg", *shlex.split(line)]
    print(f"{cli.main()} {line}", flush=True)
    print(f"end of {line}", file=sys.stderr, flush=True)
"""
COMMANDS = [
    "check images",
    "compare images --backbones resnet18 --strategies full --seeds 0",
    "shard images --out shards",
    "evaluate m.pt",
    "predict m.pt a.jpg",
    "extract m.pt a.jpg",
    "export m.pt --format detr --out w.pth",
]


@pytest.mark.parametrize(
    ("edits", "at_the_end", "commands", "part"),
    [
        ({}, "config = FinetuneConfig(num_epochs=-3)", COMMANDS, "num_epochs = -3: must be a whole number"),
        ({"num_epochs": 'num_epochs: int = "many"'}, "", COMMANDS[:2], "num_epochs = 'many': must be a whole number"),
    ],
    ids=["negative", "no number"],
)
def test_a_wrong_edit_gets_a_sentence_in_every_command(edited, edits, at_the_end, commands, part):
    code, out, err = edited(edits, at_the_end, *commands, program=("-c", IN_TURN))
    assert code == 0, err
    assert "Traceback" not in err
    assert out.splitlines() == [f"2 {command}" for command in commands]
    for command in commands:
        said, _, err = err.partition(f"end of {command}\n")
        # predict, extract and export make no settings of a training.
        makes_settings = not command.startswith(("predict", "extract", "export"))
        assert (part if makes_settings else "there is no file") in said, command
