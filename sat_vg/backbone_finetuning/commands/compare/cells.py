"""The cells of a comparison, backbones x strategies x seeds: complete configurations from flags and a recipe."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args
from urllib.parse import quote

from sat_vg.backbone_finetuning.commands.compare.cli import CompareOptions
from sat_vg.backbone_finetuning.configs.choices import Strategy
from sat_vg.backbone_finetuning.configs.command_line import parse_command_line
from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.configs.validation import explain_unknown_fields
from sat_vg.backbone_finetuning.configs.yaml_files import read_yaml
from sat_vg.backbone_finetuning.models.networks.hub_names import ALIASES
from sat_vg.backbone_finetuning.models.networks.table import BACKBONES, TIMM_PREFIX
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.home_paths import expand_home

RECIPE_KEYS = (
    "backbones", "strategies", "seeds", "dataset_path", "weights", "settings", "settings_by_strategy",
    "settings_by_backbone",
)  # fmt: skip
# Set by the comparison for each cell.
OWN_FIELDS = ("backbone", "strategy", "seed", "checkpoint_dir", "log_dir", "resume")
# The settings that select and split the images; the same in all cells.
DATA_FIELDS = (
    "dataset_path", "dataset", "train_split", "val_split", "val_fraction", "split", "block_size", "group_column",
    "label_separator", "num_classes", "on_bad_image", "on_duplicates",
)  # fmt: skip
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9}


@dataclass(frozen=True)
class Cell:
    """One training of the comparison."""

    config: FinetuneConfig  # complete, with its own folders
    folder: Path  # of all its files

    @property
    def name(self) -> str:
        """Backbone, strategy and seed, as in messages."""
        return f"{self.config.backbone} {self.config.strategy} seed {self.config.seed}"

    @property
    def image_size(self) -> int:
        """Height and width of its images in pixels; the comparison has settled it."""
        assert self.config.image_size is not None
        return self.config.image_size


def make_cells(options: CompareOptions, flags: Sequence[str] = ()) -> list[Cell]:
    """All cells, seed by seed, so that a comparison that is stopped early has compared all with the first seed.

    ``flags`` are those of the training command, for all cells; they outrank the recipe. Raises ConfigError where a
    name is unknown, a list is empty or holds something twice, or settings do not fit together.
    """
    recipe = _read_recipe(options.recipe)
    backbones = _names("backbones", options.backbones, recipe)
    strategies = _names("strategies", options.strategies, recipe)
    seeds = _names("seeds", options.seeds, recipe, kind=int)
    dataset_path = options.data or recipe.get("dataset_path")
    weights = {**_mapping("weights", recipe), **parse_weights(options.weights or ())}
    _require_among(weights, backbones, "weights", "backbones")
    _require_files(weights)
    shared = _settings(recipe.get("settings"), "settings")
    by_strategy = {name: _settings(value, name) for name, value in _mapping("settings_by_strategy", recipe).items()}
    by_backbone = {name: _settings(value, name) for name, value in _mapping("settings_by_backbone", recipe).items()}
    explain_unknown_fields(by_strategy, get_args(Strategy), "settings_by_strategy", "it holds names of strategies")
    _require_backbones(by_backbone, backbones)
    _refuse_own(flags)
    configs: dict[tuple[str, str], FinetuneConfig] = {}
    for backbone in backbones:
        for strategy in strategies:
            given = {**shared, **by_strategy.get(strategy, {}), **by_backbone.get(backbone, {})}
            if dataset_path is not None:
                given["dataset_path"] = dataset_path
            if backbone in weights:
                given["weights"] = weights[backbone]
            given |= {"backbone": backbone, "strategy": strategy}
            configs[backbone, strategy] = _configure(given, flags, f"{backbone} {strategy}")
    _require_same_data(configs)
    folder = expand_home(options.out) / "cells"
    return [_cell(config, seed, folder) for seed in seeds for config in configs.values()]


def _read_recipe(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        recipe = read_yaml(expand_home(path))
    except ConfigError as error:  # the reader's words are those of the training command
        raise ConfigError(str(error).replace("config file", "recipe").replace("--config", "--recipe")) from error
    explain_unknown_fields(recipe, RECIPE_KEYS, f"the recipe {path!r}", f"it may hold {', '.join(RECIPE_KEYS)}")
    return recipe


def _names(what: str, given: Sequence[Any] | None, recipe: Mapping[str, Any], kind: type = str) -> tuple[Any, ...]:
    values = recipe.get(what) if given is None else given
    flag = f"--{what} {'0,1' if kind is int else 'A,B'}"
    if values is None or values in ([], ()):
        raise ConfigError(f"{what}: none were given; name them with {flag} or in a recipe")
    if not isinstance(values, (list, tuple)) or not all(type(value) is kind for value in values):
        numbers_or_names = "whole numbers" if kind is int else "names"
        raise ConfigError(f"{what} = {values!r}: must be a list of {numbers_or_names}, such as {flag}")
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        raise ConfigError(f"{what} = {list(values)}: {twice[0]!r} is there more than once; name each once")
    return tuple(values)


def _mapping(what: str, recipe: Mapping[str, Any]) -> dict[str, Any]:
    value = recipe.get(what) or {}
    if not isinstance(value, dict):
        raise ConfigError(f"{what} = {value!r}: must hold lines such as 'NAME: ...'")
    return value


def _settings(value: Any, place: str) -> dict[str, Any]:
    """Settings of the training in a recipe, looked through for what the comparison sets itself."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{place} = {value!r}: must hold lines such as 'num_epochs: 5'")
    explain_unknown_fields(value, FinetuneConfig.field_names(), place=f"the recipe under {place!r}")
    own = [name for name in OWN_FIELDS if name in value]
    if own:
        raise ConfigError(f"{place}: {', '.join(own)} cannot be set here; a comparison sets it for each cell")
    return value


def _require_among(given: Mapping[str, Any], known: Sequence[str], what: str, where: str) -> None:
    strange = [name for name in given if name not in known]
    if strange:
        raise ConfigError(f"{what}: {strange[0]!r} is none of the {where} {', '.join(known)}; name it as there")


def _require_backbones(given: Mapping[str, Any], compared: Sequence[str]) -> None:
    """Refuse settings of a backbone that is none, or that is compared under another name: they would do nothing."""
    for name in given:
        if name in compared or str(name).startswith(TIMM_PREFIX):
            continue
        row = BACKBONES.get(ALIASES.get(name, name))
        if row is None:
            near = difflib.get_close_matches(str(name), [*compared, *BACKBONES], n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"compared are {', '.join(compared)}"
            raise ConfigError(f"settings_by_backbone: {name!r} is no backbone; {hint}")
        _require_among({name: row} if row.name in compared else {}, compared, "settings_by_backbone", "backbones")


def _refuse_own(flags: Sequence[str]) -> None:
    names = [flag[2:].partition("=")[0] for flag in flags if flag.startswith("--")]
    own = [name for name in names if name in OWN_FIELDS]
    if own:
        raise ConfigError(f"--{own[0]} cannot stand behind '--': a comparison sets it for each cell")
    for name in ("dry_run", "print_config", "help"):
        if name in names:
            raise ConfigError(f"--{name} cannot stand behind '--'; put --dry_run or --help before it")


def _configure(given: dict[str, Any], flags: Sequence[str], cell: str) -> FinetuneConfig:
    """Flags over the recipe's settings over defaults."""
    try:
        config = parse_command_line(flags, settings=given).config
    except ConfigError as error:
        hint = "" if "has no effect with strategy" not in str(error) else (
            "\nWhat goes with one strategy only belongs under settings_by_strategy in a --recipe FILE"
        )  # fmt: skip
        raise ConfigError(f"{cell}: {error}{hint}") from error
    if config.dataset_path is None and config.dataset is None:
        raise ConfigError("no images to compare on: name their folder: sat-vg compare DATA")
    return config


def _require_same_data(configs: Mapping[tuple[str, str], FinetuneConfig]) -> None:
    """Accuracies on different images cannot be compared."""
    for name in DATA_FIELDS:
        values = {cell: getattr(config, name) for cell, config in configs.items()}
        if len(set(values.values())) > 1:
            shown = "; ".join(f"{' '.join(cell)}: {value!r}" for cell, value in list(values.items())[:4])
            raise ConfigError(f"{name} must be the same in all cells, or they cannot be compared ({shown})")


def _require_files(weights: Mapping[str, Any]) -> None:
    """Refuse paths of weights that do not exist before anything is trained."""
    for backbone, path in weights.items():
        if not isinstance(path, str):
            raise ConfigError(f"weights: {backbone}: {path!r} is no path and no name")
        looks_like_path = "/" in path or Path(path).suffix in (".pth", ".pt", ".safetensors")
        if looks_like_path and not expand_home(path).is_file():
            raise ConfigError(f"weights of {backbone}: there is no file {path!r}; check the path")


def _cell(config: FinetuneConfig, seed: int, cells: Path) -> Cell:
    folder = cells / quote(f"{config.backbone}-{config.strategy}-seed{seed}", safe="")
    own = {"seed": seed, "checkpoint_dir": str(folder / "checkpoints"), "log_dir": str(folder / "logs")}
    return Cell(config.replace(**own), folder)


def parse_weights(pairs: Sequence[str]) -> dict[str, str]:
    """``resnet18=PATH`` and the like, by backbone. Raises ConfigError where that is not their form."""
    parts = [pair.partition("=") for pair in pairs]
    if not all(name and path for name, _, path in parts):
        raise ConfigError(
            f"--weights {','.join(pairs)}: must be pairs; for example resnet18=resnet18.pth,vgg11=vgg.pth"
        )
    found = {name.strip(): path.strip() for name, _, path in parts}
    if len(found) < len(parts):
        raise ConfigError(f"--weights {','.join(pairs)}: a backbone is there more than once; name each once")
    return found


def parse_count(text: str | None) -> int | None:
    """``5M``, ``500k``, ``2.5e6`` as a number of parameters; None of None. Raises ConfigError for another text."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d*)?(?:e\d{1,2})?)\s*([kmgb]?)", text.strip(), re.IGNORECASE)
    if match is None:
        raise ConfigError(f"--max_params {text}: must be a number of parameters; for example 5M, 500k or 2.5e6")
    return round(float(match.group(1)) * _UNITS[match.group(2).upper()])
