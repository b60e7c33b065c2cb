"""The command line of the training command, made from FinetuneConfig: flags over YAML over edited defaults."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_type_hints

from sat_vg.backbone_finetuning.configs.finetune_config import SCENES_DEFAULTS, TOPICS, FinetuneConfig
from sat_vg.backbone_finetuning.configs.option_parser import (
    print_help,
    refuse_words,
    split_arguments,
    typed_value,
)
from sat_vg.backbone_finetuning.configs.plain_values import plain_value
from sat_vg.backbone_finetuning.configs.ranges import rule_of, rules_of
from sat_vg.backbone_finetuning.configs.retired import RETIRED
from sat_vg.backbone_finetuning.configs.settings import shipped_defaults
from sat_vg.backbone_finetuning.configs.validation import explain_unknown_fields, refuse_problems, require_all_fields
from sat_vg.backbone_finetuning.configs.yaml_files import find_recipe, read_yaml, recipe_names
from sat_vg.backbone_finetuning.utils.errors import ConfigError

_DESCRIPTION = """\
Fine-tune a torchvision backbone on satellite or aerial images in class folders or a table.

  own images     %(prog)s --dataset_path DIR --backbone resnet50
  a table        %(prog)s --dataset_path FILE.csv --backbone resnet50
  a known set    %(prog)s --dataset eurosat --backbone resnet50
  a recipe       %(prog)s --config ucmerced --dataset_path DIR
  dry run        %(prog)s --dataset_path DIR --dry_run
  no arguments   a small run on built-in scenes, done within minutes on two CPU cores

Results: CHECKPOINT_DIR/best_model.pt (the product), CHECKPOINT_DIR/last.pt (to resume from; the same command
resumes), LOG_DIR (TensorBoard and metrics.jsonl). Exit codes: 0 done, 1 stopped by an error while running,
2 a setting or an input is wrong, 130 stopped by Ctrl-C, 75 by SIGTERM or SIGUSR1 (after both the same command
resumes).
"""
_USAGE = "%(prog)s [--config FILE] [--dry_run] [--print_config] [--FIELD VALUE ...]"
_OWN_FLAGS = {"config": str, "dry_run": bool, "print_config": bool}
_OWN_HELP = (
    ("--config", "FILE", f"YAML file with any of the fields below, or a recipe: {', '.join(recipe_names())}."),
    ("--dry_run", "", "Print data, phases with their trainable stages, steps and batch shapes; train nothing."),
    ("--print_config", "", "Print the configuration as YAML, ready for --config, and exit."),
)


@dataclass(frozen=True)
class TrainCommand:
    """What the command line asked for."""

    config: FinetuneConfig
    dry_run: bool


def parse_command_line(
    arguments: Sequence[str],
    prog: str = "python -m sat_vg.backbone_finetuning.train",
    settings: Mapping[str, Any] | None = None,
) -> TrainCommand:
    """Read the command line. ``--help`` and ``--print_config`` print and leave through ``SystemExit(0)``.

    Flags outrank the YAML file, which outranks a ``config = FinetuneConfig(...)`` in finetune_config.py, which
    outranks the defaults there. Where none of them gives a ``dataset_path`` or a ``dataset``, the run uses the
    built-in scenes, whose settings replace the defaults that nobody changed.

    Args:
        arguments: without the program's name.
        prog: the command's name, for messages.
        settings: fields that a caller sets; YAML file and flags outrank them.

    Raises:
        ConfigError: a flag or field is unknown (the nearest known one is named), or a value is invalid.
    """
    require_all_fields(shipped_defaults(), FinetuneConfig.field_names())
    hints = get_type_hints(FinetuneConfig)
    types = {name: hints[name] for name in FinetuneConfig.field_names()}
    types |= _OWN_FLAGS | dict.fromkeys(RETIRED, int | float | str)
    rules = {**{name: rule_of(kind) for name, kind in types.items()}, **rules_of(FinetuneConfig)}
    written, words = split_arguments(arguments, types, rules, prog)
    if "help" in written:
        print_help(FinetuneConfig, prog, _DESCRIPTION, _USAGE, topics=TOPICS, more=_OWN_HELP)
    refuse_words(words, prog, "images are named by --dataset_path, settings in a file by --config; ")
    named = dict(settings or {})
    for path in written.pop("config", ()):
        from_file = read_yaml(find_recipe(path))
        explain_unknown_fields(from_file, (*FinetuneConfig.field_names(), *RETIRED), f"the config file {path!r}")
        # A wrong value is named here even where a flag outranks it.
        held = {name: plain_value(from_file[name]) for name in FinetuneConfig.field_names() if name in from_file}
        refuse_problems([rules[name].problem(name, held[name]) for name in held if not rules[name].holds(held[name])])
        named |= from_file
    named |= {name: typed_value(texts[-1], types[name]) for name, texts in written.items()}
    dry_run, print_config = (named.pop(name, False) for name in ("dry_run", "print_config"))
    edited = edited_settings()
    given = edited | named
    has_images = given.get("dataset_path") is not None or given.get("dataset") is not None
    scenes = {} if has_images else SCENES_DEFAULTS
    config = FinetuneConfig.of(given, scenes, _origins(edited, named, scenes))
    if print_config:
        print(config.as_yaml(), end="")
        raise SystemExit(0)
    return TrainCommand(config, dry_run)


def edited_settings() -> dict[str, Any]:
    """What a user has written into finetune_config.py: a ``config`` of the module, and defaults of the class.

    Raises:
        ConfigError: the module's ``config`` is something else.
    """
    written = getattr(sys.modules[FinetuneConfig.__module__], "config", None)
    if written is not None and not isinstance(written, FinetuneConfig):
        raise ConfigError(f"config = {written!r} in {_place()}: must be a FinetuneConfig(...); or remove it")
    of_config = {} if written is None else {name: getattr(written, name) for name in written.given}
    return FinetuneConfig.edited_defaults() | of_config


def _place() -> str:
    return str(sys.modules[FinetuneConfig.__module__].__file__)


def _origins(edited: Mapping[str, Any], named: Mapping[str, Any], scenes: Mapping[str, Any]) -> list[str]:
    """Where the settings come from that stand neither on the command line nor in the YAML file, in lines."""
    lines = []
    for place, values, above in (
        (_place(), edited, named.keys()),
        ("the built-in scenes", scenes, named.keys() | edited.keys()),
    ):
        taken = [f"{name} = {value!r}" for name, value in values.items() if name not in above]
        if taken:
            lines.append(f"settings of {place}: {', '.join(taken)}")
    return lines
