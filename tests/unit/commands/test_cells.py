"""What a comparison plans: flags over the recipe over defaults, and what it refuses."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from sat_vg.backbone_finetuning.commands.compare.cells import Cell, make_cells, parse_count, parse_weights
from sat_vg.backbone_finetuning.commands.compare.cli import CompareOptions
from sat_vg.backbone_finetuning.commands.compare.results import _notes, _settings, command_of
from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.data.sources.splits import Split, Splits
from sat_vg.backbone_finetuning.evaluation.costs import Timing
from sat_vg.backbone_finetuning.utils.errors import ConfigError

REPOSITORY = Path(__file__).parents[3]
GRID = {"backbones": ("resnet18", "vgg11"), "strategies": ("full", "linear_probe"), "seeds": (0, 7)}


def recipe(tmp_path: Path, text: str) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return str(path)


def test_flags_outrank_the_recipe_which_outranks_defaults(tmp_path):
    text = """
settings: {num_epochs: 6, learning_rate: 1e-3, image_size: 64, unfreeze_layers: null}
settings_by_strategy: {full: {learning_rate: 1e-4, label_smoothing: 0.1}}
settings_by_backbone: {vgg11: {learning_rate: 1e-5}, alexnet: {learning_rate: 1}}
dataset_path: images
seeds: [1]
"""
    flags = ("--num_epochs", "9", "--mixup_alpha=0.2")
    cells = make_cells(CompareOptions(recipe=recipe(tmp_path, text), out=str(tmp_path), **GRID), flags)
    found = {(c.config.backbone, c.config.strategy, c.config.seed): c.config for c in cells}
    assert list(found) == [(b, s, n) for n in (0, 7) for b in ("resnet18", "vgg11") for s in ("full", "linear_probe")]
    for config in found.values():
        assert (config.num_epochs, config.image_size, config.mixup_alpha) == (9, 64, 0.2)
        assert config.weight_decay == FinetuneConfig().weight_decay
    rates = {key[:2]: config.learning_rate for key, config in found.items()}
    assert rates["resnet18", "full"] == 1e-4
    assert rates["resnet18", "linear_probe"] == 1e-3
    assert rates["vgg11", "full"] == rates["vgg11", "linear_probe"] == 1e-5
    assert len({cell.folder for cell in cells}) == len({cell.config.checkpoint_dir for cell in cells}) == 8
    assert found["resnet18", "full", 7].log_dir == str(tmp_path / "cells/resnet18-full-seed7/logs")


def test_folders_of_odd_names_stay_inside(tmp_path):
    cells = make_cells(
        CompareOptions(data="d", backbones=("timm:../x", ".."), strategies=("full",), seeds=(0,), out=str(tmp_path))
    )
    for cell in cells:
        assert cell.folder.resolve().parent == tmp_path / "cells"


def test_the_recipe_for_ucmerced_is_sound(tmp_path):
    cells = make_cells(
        CompareOptions(data="d", recipe=str(REPOSITORY / "configs/compare/ucmerced.yaml"), out=str(tmp_path))
    )
    assert len(cells) == 12
    assert {cell.config.image_size for cell in cells} == {128}


@pytest.mark.parametrize(
    ("change", "text", "message"),
    [
        ({}, "settings: {num_epoch: 3}", "did you mean 'num_epochs'"),
        ({}, "setting: {}", "did you mean 'settings'"),
        ({}, "settings: {seed: 3}", "seed cannot be set here"),
        ({}, "settings: [1]", "must hold lines such as 'num_epochs: 5'"),
        ({}, "weights: [a]", "weights = ['a']: must hold lines"),
        ({}, "weights: {resnet18: 3}", "weights: resnet18: 3 is no path"),
        ({}, "settings_by_backbone: {vgg11: {val_fraction: 0.3}}", "val_fraction must be the same in all cells"),
        ({}, "settings_by_backbone: {vgg11: {group_column: g}}", "group_column must be the same in all cells"),
        (
            {},
            "settings_by_strategy: {full: {split: spatial, block_size: 9}}",
            "split must be the same in all cells",
        ),
        (
            {"data": None},
            "settings: {dataset_path: y}\nsettings_by_strategy: {full: {dataset_path: x}}",
            "dataset_path must be the same in all cells",
        ),
        ({}, "settings_by_strategy: {ful: {num_epochs: 2}}", "no field 'ful': did you mean 'full'?"),
        ({}, "settings_by_strategy: {1: {num_epochs: 2}}", "no field 1"),
        (
            {},
            "settings_by_backbone: {resnet8: {num_epochs: 2}}",
            "'resnet8' is no backbone; did you mean 'resnet18'?",
        ),
        (
            {},
            "settings_by_backbone: {microsoft/resnet-18: {num_epochs: 2}}",
            "is none of the backbones resnet18, vgg11",
        ),
        ({}, "setings: {}", "it may hold backbones, strategies, seeds"),
        ({"weights": ("resnet18=a.pth", "resnet18=b.pth")}, "", "a backbone is there more than once"),
        ({"seeds": None}, "seeds: [one]", "must be a list of whole numbers"),
        ({"seeds": None}, "seeds: [true]", "must be a list of whole numbers"),
        ({"backbones": None}, "backbones: resnet18", "must be a list of names"),
        ({"seeds": (-1,)}, "", "seed = -1: must be a whole number of 0 or more"),
        ({"flags": ("--seed", "3")}, "", "--seed cannot stand behind '--'"),
        ({"flags": ("--backbone=x",)}, "", "--backbone cannot stand behind '--'"),
        ({"flags": ("--dry_run",)}, "", "put --dry_run or --help before it"),
        ({"flags": ("--num_epoch", "3")}, "", "did you mean --num_epochs?"),
        ({"flags": ("--last_layers", "2")}, "", "belongs under settings_by_strategy"),
        ({"flags": ("--num_epochs", "none")}, "", "resnet18 full: the configuration has 1 problem"),
        ({"data": None}, "", "no images to compare on"),
        ({"data": None}, "settings: {}", "no images to compare on"),
    ],
)
def test_what_is_refused(tmp_path, change, text, message):
    given = {"data": "d", "out": str(tmp_path), **GRID, **change}
    flags = given.pop("flags", ())
    with pytest.raises(ConfigError) as caught:
        make_cells(CompareOptions(**given, recipe=recipe(tmp_path, text) if text else None), flags)
    assert message in str(caught.value)


def test_values_of_options():
    assert parse_weights(("a=x/y.pth", "b=z=1")) == {"a": "x/y.pth", "b": "z=1"}
    assert [parse_count(t) for t in ("5M", "500k", "2.5e6", "1.2B", "7")] == [5_000_000, 500_000, 2_500_000, 1.2e9, 7]
    for text in ("M", "-5", "nan"):
        with pytest.raises(ConfigError, match=f"--max_params {text}: must be a number of parameters; for example 5M"):
            parse_count(text)
    with pytest.raises(ConfigError, match="--weights a: must be pairs; for example resnet18="):
        parse_weights(("a",))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "The 9 validation images of the data set's own split are the same for all seeds."),
        ({"split": "spatial", "block_size": 50}, "The seed draws the 9 validation images by blocks of ground:"),
        ({"group_column": "flight"}, "The seed draws the 9 validation images by groups of 'flight':"),
    ],
)
def test_the_notes_say_whether_the_seed_draws_val(settings, said):
    config = FinetuneConfig(dataset_path="images", image_size=64, **settings)
    finished = SimpleNamespace(cell=Cell(config, Path("cell")), result=SimpleNamespace(val_images=9))
    images = Split("train", (), (), ("a", "b"))
    assert said in _notes([finished], Splits(images, images, None, ""), "cpu", Timing())[0]


def test_the_command_of_a_comparison_names_no_folder_of_this_machine_and_keeps_a_slash():
    options = CompareOptions(data="/home/me/images", backbones=("vgg11",), strategies=("full",), seeds=(0,))
    flags = ("--label_separator", "/", "--config", "/home/me/a.yaml")
    assert command_of(options, flags).split(" -- ")[1] == "--label_separator / --config a.yaml"
    assert "/home" not in command_of(options, flags)


@pytest.mark.parametrize(
    ("strategies", "rate", "shown"),
    [
        (("lp_ft",), 3e-4, "0.0003"),  # a default of most strategies, and none of lp_ft
        (("lp_ft", "full"), 3e-4, "0.0003"),
        (("lp_ft", "full"), None, "0.001: resnet18 lp_ft; 0.0003: resnet18 full"),
        (("full",), 3e-4, None),
        (("full",), 2e-4, "0.0002"),
    ],
)
def test_the_page_shows_a_learning_rate_that_the_strategy_would_not_set(strategies, rate, shown):
    given = {"dataset_path": "images", "backbone": "resnet18", **({} if rate is None else {"learning_rate": rate})}
    found = dict(_settings([FinetuneConfig(strategy=strategy, **given) for strategy in strategies]))
    assert found.get("learning_rate") == shown
