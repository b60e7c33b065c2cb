"""Grounding checkpoints that are altered: one sentence, exit code 2, and no more memory than the file is worth."""

import copy
import json
import resource
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sat_vg.backbone_finetuning.utils.tensor_files import load_tensors, save_tensors
from sat_vg.cli import COMMANDS

pytestmark = [
    pytest.mark.recipe,
    pytest.mark.timeout(120),
    pytest.mark.skipif(sys.platform == "win32", reason="memory as POSIX counts it"),
]
FLAGS = (
    "--backbone", "squeezenet1_1", "--weights", "none", "--image_size", "64", "--width", "16", "--num_heads", "2",
    "--fusion_layers", "1", "--num_epochs", "2", "--batch_size", "4", "--num_threads", "1",
    "--checkpoint_dir", "ckpt", "--log_dir", "logs", "--data", "data.json",
)  # fmt: skip


def ground(folder: Path, capfd, monkeypatch, *arguments: object) -> tuple[int, str]:
    """``sat-vg ground COMMAND`` in a folder: exit code and standard error."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SAT_VG_CACHE", str(folder / "cache"))
    capfd.readouterr()
    code = import_module(COMMANDS["ground"].module).main([str(argument) for argument in arguments])
    return code, capfd.readouterr().err


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A finished run on four small images."""
    folder = tmp_path_factory.mktemp("altered")
    generator = np.random.default_rng(0)
    for number in range(4):
        pixels = generator.integers(0, 255, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    entries = [
        {"image": f"{number}.png", "phrase": f"the {word} thing", "box": [4, 4, 20 + number, 30], "split": split}
        for number, split in enumerate(("train", "train", "train", "val"))
        for word in ("red", "left")
    ]
    (folder / "data.json").write_text(json.dumps(entries))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("SAT_VG_CACHE", str(folder / "cache"))
        assert import_module(COMMANDS["ground"].module).main(["train", *FLAGS]) == 0
    return folder


def set_to(*path: object, value: object):
    """An alteration: put a value where keys lead."""

    def alter(content: dict) -> None:
        *way, last = path
        for key in way:
            content = content[key]
        content[last] = value

    return alter


def without(*path: object):
    """An alteration: leave out what keys lead to."""

    def alter(content: dict) -> None:
        *way, last = path
        for key in way:
            content = content[key]
        del content[last]

    return alter


HUGE = 10**9
MODELS = {
    "another schema": set_to("schema", value=99),
    "schema is a tensor": set_to("schema", value=torch.zeros(3)),
    "no sizes": set_to("sizes", value={}),
    "width": set_to("sizes", "width", value=HUGE * 8),
    "image_size": set_to("sizes", "image_size", value=HUGE),
    "max_words": set_to("sizes", "max_words", value=HUGE),
    "fusion_layers": set_to("sizes", "fusion_layers", value=HUGE),
    "text_layers": set_to("sizes", "text_layers", value=-1),
    "num_heads": set_to("sizes", "num_heads", value=3),
    "dropout": set_to("sizes", "dropout", value="much"),
    "vocabulary of numbers": set_to("vocabulary", value=[1, 2, 3]),
    "vocabulary of one word": lambda content: content.update(vocabulary=["a"] * len(content["vocabulary"])),
    "vocabulary is longer": set_to("vocabulary", value=["a"] * 50_000),
    "unknown backbone": set_to("backbone", value="resnet1"),
    "another backbone": set_to("backbone", value="resnet18"),
    "no preprocessing": set_to("preprocessing", value={}),
    "preprocessing of huge images": set_to("preprocessing", "image_size", value=HUGE),
    "a weight is missing": without("state_dict", "score.weight"),
    "a weight is no tensor": set_to("state_dict", "score.weight", value=1.0),
    "a weight of another shape": set_to("state_dict", "score.weight", value=torch.zeros(2, 3)),
    "a weight is NaN": set_to("state_dict", "score.weight", value=torch.full((1, 16), torch.nan)),
    "metrics": set_to("metrics", value={"pr@0.5": "good"}),
    "setting": set_to("config", "seed", value="first"),
    "unknown setting": set_to("config", "colour", value=3),
    "no freeze_norm": without("freeze_norm"),
    "baseline": set_to("baselines", "blind", value=torch.zeros(2, 4)),
    "text encoder without a tokenizer": set_to("text", value={"config": "{}"}),
    "text encoder is a list": set_to("text", value=["config", "tokenizer"]),
    "baselines are no tensors": set_to("baselines", value={"blind": [1, 2]}),
}
STATES = {
    "step below zero": set_to("state", "step", value=-1),
    "step": set_to("state", "step", value=HUGE),
    "epoch": set_to("state", "epoch", value=7),
    "not finished": set_to("state", "finished", value=False),
    "train_images": set_to("state", "train_images", value=3),
    "best_value": set_to("state", "best_value", value="good"),
    "no state": set_to("state", value=[]),
    "settings": set_to("config", value={}),
    "setting is a tensor": set_to("config", "seed", value=torch.zeros(2)),
    "data": set_to("data_fingerprint", value=None),
    "a weight is missing": without("network", "score.weight"),
    "a weight of another shape": set_to("network", "score.weight", value=torch.zeros(2, 3)),
    "groups": set_to("optimizer", "param_groups", value=[]),
    "an average of another shape": set_to("optimizer", "state", 0, "exp_avg", value=torch.zeros(7)),
    "learning rate": set_to("optimizer", "param_groups", 0, "lr", value="fast"),
}


def require_one_sentence(code: int, err: str, before: int) -> None:
    assert code == 2, err
    assert err.startswith("error: ") and "Traceback" not in err and len(err.strip().splitlines()) <= 3, err
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    assert grown < 0.3, f"{grown} GiB"


@pytest.mark.parametrize("what", MODELS)
def test_an_altered_model(what, made, tmp_path, capfd, monkeypatch):
    content = load_tensors(made / "ckpt/best_model.pt")
    MODELS[what](content)
    save_tensors(tmp_path / "altered.pt", content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    code, err = ground(made, capfd, monkeypatch, "predict", tmp_path / "altered.pt", "0.png", "the red thing")
    require_one_sentence(code, err, before)
    assert "altered.pt" in err


@pytest.mark.parametrize("what", STATES)
def test_an_altered_state(what, made, capfd, monkeypatch):
    last = made / "ckpt/last.pt"
    sound = load_tensors(last)
    content = copy.deepcopy(sound)
    STATES[what](content)
    save_tensors(last, content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        code, err = ground(made, capfd, monkeypatch, "train", *FLAGS)
    finally:
        save_tensors(last, sound)
    require_one_sentence(code, err, before)
    assert "ckpt" in err
