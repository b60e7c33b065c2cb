"""Checks of a configuration: every field by its own rule, then fields against one another, all at once."""

import difflib
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sat_vg.backbone_finetuning.configs.band_choice import EXAMPLE, are_bands, band_problems
from sat_vg.backbone_finetuning.configs.image_sources import DATASET_NAMES, source_problems
from sat_vg.backbone_finetuning.configs.strategy_settings import strategy_problems
from sat_vg.backbone_finetuning.configs.weight_sharding import sharding_problems
from sat_vg.backbone_finetuning.utils.errors import ConfigError


@dataclass(frozen=True)
class Rule:
    """What a field may hold.

    Attributes:
        holds: tells whether a value is allowed; called with any value at all.
        allowed: the same in words, for the message.
        remedy: what to write instead, for the message.
    """

    holds: Callable[[Any], bool]
    allowed: str
    remedy: str


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _whole(lowest: int, example: int, highest: int | None = None, or_unset: bool = False) -> Rule:
    def holds(value: Any) -> bool:
        if value is None:
            return or_unset
        in_range = isinstance(value, int) and not isinstance(value, bool) and value >= lowest
        return in_range and (highest is None or value <= highest)

    allowed = f"a whole number of {lowest} or more" if highest is None else f"a whole number, {lowest} to {highest}"
    return Rule(holds, allowed + (" or null" if or_unset else ""), f"for example {example}")


def _real(allowed: str, holds: Callable[[float], bool], example: float) -> Rule:
    return Rule(lambda value: _is_number(value) and holds(value), f"a number {allowed}", f"for example {example}")


def _one_of(*choices: str, or_unset: bool = False) -> Rule:
    return Rule(
        lambda value: or_unset if value is None else isinstance(value, str) and value in choices,
        " or ".join((*choices, "null") if or_unset else choices),
        f"for example {choices[0]}",
    )


def _text(remedy: str, or_unset: bool = False) -> Rule:
    def holds(value: Any) -> bool:
        return or_unset if value is None else isinstance(value, str) and value.strip() != "" and "\0" not in value

    return Rule(holds, "a text that is not empty" + (" or null" if or_unset else ""), remedy)


def _or_auto(rule: Rule) -> Rule:
    return Rule(lambda value: value == "auto" or rule.holds(value), f"{rule.allowed}, or auto", rule.remedy)


_SEPARATOR = Rule(
    lambda value: (
        isinstance(value, str) and value != "" and not any(one.isalnum() or one in "\0\r\n" for one in value)
    ),
    "one or more characters that are no letters or digits",
    'for example "|", "," or " "',
)
_FOLDER_NAME = Rule(
    lambda value: (
        isinstance(value, str) and value.strip() not in ("", ".", "..") and not set(value) & {"/", "\\", "\0"}
    ),
    "the name of a folder in dataset_path, without slashes",
    "for example val",
)
_SWITCH = Rule(lambda value: isinstance(value, bool), "true or false", "true or false")
_SWITCH_OR_UNSET = Rule(lambda value: value is None or isinstance(value, bool), "true, false or null", "leave it out")
_STAGES = Rule(
    lambda value: (
        value is None
        or (isinstance(value, tuple) and len(value) > 0 and all(isinstance(name, str) for name in value))
    ),
    "a list of stage names that is not empty, or null",
    "for example [layer3, layer4]",
)
_EPOCHS = Rule(
    lambda value: (
        value is None
        or (
            isinstance(value, tuple)
            and len(value) > 0
            and all(isinstance(count, int) and not isinstance(count, bool) and count > 0 for count in value)
        )
    ),
    "a list of whole numbers of 1 or more, or null",
    "for example [4, 16]",
)
_IMAGE_SIZES = Rule(
    lambda value: (
        value is None
        or (
            isinstance(value, tuple)
            and all(isinstance(size, int) and not isinstance(size, bool) and 16 <= size <= 4096 for size in value)
            and 0 < len(value) == len(set(value))
        )
    ),
    "a list of different whole numbers, 16 to 4096, or null",
    "for example [96, 128]",
)
_BANDS = Rule(
    are_bands,
    "a list of bands, each a number from 1 or a description, with a name and = before it if need be, or null",
    f"for example {EXAMPLE}",
)
_POSITIVE = _real("above 0", lambda value: value > 0, 3e-4)
_NOT_NEGATIVE = _real("of 0 or more", lambda value: value >= 0, 0.0)
_PROBABILITY = _real("from 0 up to but not including 1", lambda value: 0 <= value < 1, 0.1)

RULES: dict[str, Rule] = {
    "dataset_path": _text("the folder of your images, or leave it out for the built-in scenes", or_unset=True),
    "dataset": replace(
        _one_of(*DATASET_NAMES, or_unset=True),
        remedy="for example eurosat; any other data set by its folder or table in dataset_path",
    ),
    "allow_outside": _SWITCH,
    "label_separator": _SEPARATOR,
    "train_split": _FOLDER_NAME,
    "val_split": _FOLDER_NAME,
    "val_fraction": _real("above 0 and below 1", lambda value: 0 < value < 1, 0.2),
    "num_classes": _whole(2, 10, or_unset=True),
    "on_bad_image": _one_of("error", "skip"),
    "max_bad_fraction": _real("from 0 to 1", lambda value: 0 <= value <= 1, 0.01),
    "on_duplicates": _one_of("error", "warn", "ignore"),
    "bands": _BANDS,
    "nodata": Rule(lambda value: value is None or _is_number(value), "a number or null", "for example -9999"),
    "rescale": _one_of("none", "percentile"),
    "backbone": _text("for example resnet50"),
    "pretrained": _SWITCH,
    "weights": _text("a torchvision name, a path, none, or null", or_unset=True),
    "allow_missing": _SWITCH,
    "image_size": _whole(16, 224, highest=4096, or_unset=True),
    "train_image_size": _IMAGE_SIZES,
    "freeze_early_layers": _SWITCH,
    "unfreeze_layers": _STAGES,
    "strategy": _one_of("full", "linear_probe", "last_layers", "progressive", "lp_ft", or_unset=True),
    "probe_solver": _one_of("exact", "sgd"),
    "last_layers": _whole(1, 1),
    "phase_epochs": _EPOCHS,
    "freeze_layers": _whole(0, 2),
    "dropout": _PROBABILITY,
    "batch_size": _or_auto(_whole(1, 32)),
    "micro_batch_size": _whole(1, 8, or_unset=True),
    "num_epochs": _whole(1, 20),
    "optimizer": _one_of("adamw", "sgd"),
    "learning_rate": _POSITIVE,
    "layer_decay": _real("above 0 and up to 1", lambda value: 0 < value <= 1, 0.8),
    "head_lr_scale": _POSITIVE,
    "weight_decay": _NOT_NEGATIVE,
    "momentum": _PROBABILITY,
    "warmup_epochs": _NOT_NEGATIVE,
    "lr_scheduler": _one_of("cosine", "step", "plateau"),
    "lr_step_size": _whole(1, 7),
    "lr_gamma": _real("above 0 and below 1", lambda value: 0 < value < 1, 0.1),
    "min_lr": _NOT_NEGATIVE,
    "gradient_clip": _NOT_NEGATIVE,
    "ema_decay": _PROBABILITY,
    "best_weights": _one_of("auto", "average", "trained"),
    "wise_ft": _SWITCH,
    "label_smoothing": _PROBABILITY,
    "class_weights": _one_of("none", "balanced", "effective"),
    "focal_gamma": _NOT_NEGATIVE,
    "sampler": _one_of("uniform", "weighted", "class_balanced"),
    "use_augmentation": _SWITCH,
    "augmentation": _one_of(
        "satellite",
        "none",
        "turns",
        "basic",
        "randaugment",
        "trivialaugment",
        "autoaugment",
        "advanced",
        "crops",
        or_unset=True,
    ),
    "shard_window": _whole(0, 8),
    "cached_views": _whole(0, 4),
    "mixup_alpha": _NOT_NEGATIVE,
    "cutmix_alpha": _NOT_NEGATIVE,
    "early_stopping_patience": _whole(0, 10),
    "early_stopping_min_delta": _NOT_NEGATIVE,
    "early_stopping_metric": _one_of("val_accuracy", "val_loss", "val_macro_f1", "val_map", or_unset=True),
    "seed": _whole(0, 0),
    "device": _text("auto, cpu, cuda, cuda:0 or mps"),
    "mixed_precision": _SWITCH,
    "autocast_dtype": _one_of("auto", "bf16", "fp16"),
    "channels_last": _SWITCH_OR_UNSET,
    "tf32": _SWITCH,
    "compile": _SWITCH,
    "sync_batch_norm": _SWITCH,
    "shard_weights": _SWITCH,
    "num_threads": _whole(1, 2, highest=1024, or_unset=True),
    "keep_freed_memory": _SWITCH_OR_UNSET,
    "profile": _SWITCH,
    "num_workers": _whole(0, 4, highest=1024, or_unset=True),
    "loader_timeout": _whole(0, 300, highest=1_000_000),
    "cache": replace(
        _one_of("auto", "ram", "disk", "off"),
        remedy='for example auto; in a YAML file "off" needs its quotes, or it means false',
    ),
    "cache_gib": _real("above 0", lambda value: value > 0, 16.0),
    "log_dir": _text("for example logs/finetune"),
    "checkpoint_dir": _text("for example checkpoints/finetune"),
    "save_frequency": _whole(1, 1),
    "save_every_steps": _whole(0, 500),
    "save_every_minutes": _real("of 0 or more", lambda value: value >= 0, 10.0),
    "max_checkpoints": _whole(1, 2),
    "log_every": _whole(1, 10),
    "resume": _text("auto, never, or the path of a last.pt"),
}


def check_fields(values: Mapping[str, Any]) -> None:
    """Check every field by itself.

    Raises:
        ConfigError: lists every problem with field, value, what is allowed, and the remedy.
    """
    _refuse([describe_problem(name, values[name]) for name, rule in RULES.items() if not rule.holds(values[name])])


def require_all_fields(names: Collection[str]) -> None:
    """Refuse a class of settings that was edited until a field was none any more.

    Raises:
        ConfigError: names it.
    """
    lost = [name for name in RULES if name not in names]
    if lost:
        raise ConfigError(
            f"FinetuneConfig has lost its field {lost[0]!r}: in finetune_config.py write it with its type, as in "
            "'num_epochs: int = 50'"
        )


def check_combinations(values: Mapping[str, Any]) -> None:
    """Check fields against one another, each of which is sound by itself.

    Raises:
        ConfigError: lists every contradiction, and the remedy.
    """
    _refuse(_combinations(values))


def _refuse(problems: list[str]) -> None:
    if problems:
        heading = (
            "the configuration has 1 problem"
            if len(problems) == 1
            else f"{len(problems)} problems in the configuration"
        )
        raise ConfigError("\n  ".join([f"{heading}:", *problems]))


def describe_problem(field: str, value: Any) -> str:
    """One line on an invalid value: field, value, what is allowed, and the remedy."""
    rule = RULES[field]
    return f"{field} = {value!r}: must be {rule.allowed}; {rule.remedy}"


def _combinations(values: Mapping[str, Any]) -> list[str]:
    problems = strategy_problems(values)
    if values["unfreeze_layers"] is not None and not values["freeze_early_layers"]:
        problems.append(
            f"unfreeze_layers = {list(values['unfreeze_layers'])}: has no effect while "
            "freeze_early_layers is false; set freeze_early_layers to true, or leave unfreeze_layers out"
        )
    if values["freeze_layers"] and values["freeze_early_layers"]:
        problems.append(
            f"freeze_layers = {values['freeze_layers']}: freeze_early_layers already says what is frozen; set "
            "freeze_early_layers to false, or leave freeze_layers out"
        )
    if not values["pretrained"] and values["weights"] not in (None, "none"):
        problems.append(f"weights = {values['weights']!r}: contradicts pretrained = False; leave one of the two out")
    if values["warmup_epochs"] >= values["num_epochs"] and values["num_epochs"] > 1:
        problems.append(
            f"warmup_epochs = {values['warmup_epochs']}: must be below num_epochs = "
            f"{values['num_epochs']}, or "
            "the learning rate never gets where it should; lower it or train longer"
        )
    if values["min_lr"] > values["learning_rate"]:
        problems.append(
            f"min_lr = {values['min_lr']}: must not exceed learning_rate = {values['learning_rate']}; lower it"
        )
    patience = values["early_stopping_patience"]
    if values["lr_scheduler"] == "plateau" and patience == 1:
        problems.append(
            "early_stopping_patience = 1: with the plateau schedule the run stops before the rate is ever lowered; "
            "set it to 2 or more, or to 0"
        )
    elif values["lr_scheduler"] == "plateau" and 0 < patience <= values["lr_step_size"]:
        problems.append(
            f"lr_step_size = {values['lr_step_size']}: with the plateau schedule it must be below "
            f"early_stopping_patience = {patience}, or the run stops before the rate is ever lowered; for example 3"
        )
    micro_batch_size, batch_size = values["micro_batch_size"], values["batch_size"]
    if micro_batch_size is not None and batch_size != "auto" and micro_batch_size > batch_size:
        problems.append(
            f"micro_batch_size = {micro_batch_size}: must not exceed batch_size = {values['batch_size']}; "
            "lower it or leave it out"
        )
    problems += _speed_problems(values) + _image_problems(values)
    return problems + source_problems(values) + band_problems(values) + sharding_problems(values)


def _speed_problems(values: Mapping[str, Any]) -> list[str]:
    problems = []
    if values["autocast_dtype"] != "auto" and not values["mixed_precision"]:
        problems.append(
            f"autocast_dtype = {values['autocast_dtype']!r}: has no effect while mixed_precision is false; leave one "
            "of the two out"
        )
    if values["cached_views"]:
        beside = f"cached_views = {values['cached_views']}:"
        if not values["use_augmentation"] or values["augmentation"] == "none":
            problems.append(f"{beside} without augmentation there is one version of each image; leave it out")
        for name in ("mixup_alpha", "cutmix_alpha"):
            if values[name]:
                problems.append(
                    f"{beside} {name} = {values[name]} mixes the images of every step anew, so nothing can be kept; "
                    "leave one of the two out"
                )
        if values["strategy"] == "full":
            problems.append(f"{beside} strategy = 'full' freezes nothing; leave it out, or take another strategy")
    return problems


def _image_problems(values: Mapping[str, Any]) -> list[str]:
    """Which images a step sees, at which size, changed how."""
    problems = []
    if not values["use_augmentation"] and values["augmentation"] not in (None, "none", "satellite"):
        problems.append(
            f"augmentation = {values['augmentation']!r}: has no effect while use_augmentation is false; leave one of "
            "the two out"
        )
    if values["class_weights"] != "none" and values["sampler"] != "uniform":
        problems.append(
            f"class_weights = {values['class_weights']!r}: sampler = {values['sampler']!r} already evens the classes "
            "out, and both would count rare classes twice; set one of them to its default, none or uniform"
        )
    return problems + _size_problems(values)


def _size_problems(values: Mapping[str, Any]) -> list[str]:
    sizes, problems = values["train_image_size"], []
    if sizes is None:
        return []
    beside = f"train_image_size = {list(sizes)}:"
    if values["image_size"] is not None and max(sizes) > values["image_size"]:
        problems.append(
            f"{beside} {max(sizes)} is above image_size = {values['image_size']}, at which images are loaded and "
            "validated; raise image_size, or leave that size out"
        )
    if len(sizes) > values["num_epochs"]:
        problems.append(
            f"{beside} {len(sizes)} sizes need as many epochs, but num_epochs = {values['num_epochs']}; name fewer"
        )
    if values["cached_views"]:
        problems.append(
            f"{beside} cached_views = {values['cached_views']} keeps what the frozen stages make of images of one "
            "size; leave one of the two out"
        )
    if values["strategy"] == "linear_probe" and values["probe_solver"] == "exact":
        problems.append(
            f"{beside} an exact probe is solved for on images of image_size; set probe_solver to sgd, or leave it out"
        )
    return problems


def explain_unknown_fields(names: Iterable[str], known: Iterable[str], place: str = "the configuration") -> None:
    """Refuse names that are no fields.

    Raises:
        ConfigError: lists the unknown names, each with the nearest known one.
    """
    known = list(known)
    lines = []
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
            lines.append(f"{name!r}" + (f": did you mean {near[0]!r}?" if near else ""))
    if lines:
        raise ConfigError(
            f"{place} has no field "
            + ", no field ".join(lines)
            + "\n  python -m sat_vg.backbone_finetuning.train --help lists all fields"
        )
