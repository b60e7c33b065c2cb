"""Every file in configs/ is loaded and dry-run, and its header says how it is used."""

import re

import pytest
import yaml
from conftest import REPOSITORY

from sat_vg.backbone_finetuning.commands.compare.cli import main as compare
from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.train import main as train

pytestmark = pytest.mark.recipe

FOLDER = REPOSITORY / "configs"
RECIPES = sorted(FOLDER.glob("*.yaml"))
PLANS = sorted(FOLDER.glob("compare/*.yaml"))
NAMES = {
    "cifar10_efficientnet_b3", "cifar10_resnet50", "cifar10_vit_b_16", "convnext_tiny", "efficientnet_b3", "eurosat",
    "eurosat_128", "for_grounding", "large_data", "medium_data", "probe_first", "resnet50_from_layer2",
    "resnet50_from_layer3", "small_data", "ucmerced", "vit_b_16",
}  # fmt: skip


def header_of(path):
    return [line.removeprefix("# ") for line in path.read_text().splitlines() if line.startswith("# ")]


def shown_command(path):
    """The command of the header, which may go on over the lines that are indented after it."""
    lines = header_of(path)
    first = next(number for number, line in enumerate(lines) if line.startswith("Command:"))
    more = [line for line in lines[first + 1 :] if line.startswith("  ")]
    return " ".join([lines[first].removeprefix("Command:"), *more]).strip()


def test_all_of_them_are_found():
    assert {path.stem for path in RECIPES} == NAMES
    assert {path.stem for path in PLANS} == {"caltech256_linear_probe", "terrain", "ucmerced"}
    others = set(FOLDER.rglob("*.y*ml")) - {*RECIPES, *PLANS}
    assert {path.parent.name for path in others} == {"cluster"}  # tests/distributed/test_shown_jobs.py has these


@pytest.mark.parametrize("path", RECIPES + PLANS, ids=lambda path: path.stem)
def test_its_header_says_command_hardware_and_what_to_expect(path):
    lines = header_of(path)
    for part in ("Command:", "Hardware:", "Expected:"):
        assert sum(line.startswith(part) for line in lines) == 1, part
    command = shown_command(path)
    flag = "--recipe" if path in PLANS else "--config"
    assert f"{flag} {path.relative_to(REPOSITORY)}" in command
    settings = yaml.safe_load(path.read_text())
    named = settings.get("dataset") or settings.get("settings", {}).get("dataset")
    images = "sat-vg compare DIR" if path in PLANS else "--dataset_path"
    assert (images in command) == (named is None)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_its_folders_are_its_own(path):
    folders = {(config.log_dir, config.checkpoint_dir) for config in map(FinetuneConfig.from_yaml, RECIPES)}
    assert len(folders) == len(RECIPES)
    assert FinetuneConfig.from_yaml(path).log_dir == f"logs/{path.stem}"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_dry_runs(path, class_folders, tmp_path, monkeypatch, capfd):
    """On a few images and from random weights, where the data set and the weights would have to be fetched."""
    monkeypatch.setenv("SAT_VG_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    named = ["--dataset", "null"] if "dataset" in yaml.safe_load(path.read_text()) else []
    flags = ["--config", str(path), *named, "--dataset_path", str(class_folders), "--pretrained", "false"]
    code = train([*flags, "--device", "cpu", "--num_workers", "0", "--dry_run"])
    out, err = capfd.readouterr()
    assert code == 0, err
    assert "dry run: nothing was trained" in out
    config = FinetuneConfig.from_yaml(path)
    assert f"model: {config.backbone}, " in out
    assert re.search(rf"uint8 \[\d+, 3, {config.image_size}, {config.image_size}\]", out)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_the_plan_dry_runs(path, class_folders, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    plan = yaml.safe_load(path.read_text())
    named = ["--", "--dataset", "null"] if "dataset" in plan["settings"] else []  # it would have to be fetched
    code = compare(["--recipe", str(path), str(class_folders), "--out", str(tmp_path / "out"), "--dry_run", *named])
    out, err = capfd.readouterr()
    assert code == 0, err
    count = len(plan["backbones"]) * len(plan["strategies"]) * len(plan["seeds"])
    assert f"{count} trainings" in out
    assert out.count("to be trained") == count
    if path.stem.startswith("caltech256"):
        assert len(plan["backbones"]) == 11
