"""The command line of the training command, made from FinetuneConfig: flags over YAML over edited defaults."""

import re
import sys
from argparse import ArgumentError, RawDescriptionHelpFormatter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings

from sat_vg.backbone_finetuning.configs.band_choice import with_negative_numbers
from sat_vg.backbone_finetuning.configs.finetune_config import SCENES_DEFAULTS, FinetuneConfig
from sat_vg.backbone_finetuning.configs.plain_values import LIST_FIELDS
from sat_vg.backbone_finetuning.configs.validation import (
    RULES,
    describe_problem,
    explain_unknown_fields,
    require_all_fields,
)
from sat_vg.backbone_finetuning.configs.yaml_files import read_yaml
from sat_vg.backbone_finetuning.utils.errors import ConfigError

_DESCRIPTION = """\
Fine-tune a torchvision backbone on satellite or aerial images in class folders or a table.

  own images     %(prog)s --dataset_path DIR --backbone resnet50
  a table        %(prog)s --dataset_path FILE.csv --backbone resnet50
  a known set    %(prog)s --dataset eurosat --backbone resnet50
  a recipe       %(prog)s --config configs/NAME.yaml --dataset_path DIR
  look first     %(prog)s --dataset_path DIR --dry_run
  no arguments   a small run on built-in scenes, done within minutes on two CPU cores

Results: CHECKPOINT_DIR/best_model.pt (the product), CHECKPOINT_DIR/last.pt (to go on from; the same command
resumes), LOG_DIR (TensorBoard and metrics.jsonl). Exit codes: 0 done, 1 stopped by an error while running,
2 a setting or an input is wrong, 130 stopped by Ctrl-C, 75 by SIGTERM or SIGUSR1 (after both the same command
goes on).
"""
_OWN_FLAGS = ("config", "print_config", "dry_run", "help")


class _Formatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """Keep the description's line breaks."""


@dataclass(frozen=True)
class TrainCommand:
    """What the command line asked for."""

    config: FinetuneConfig
    dry_run: bool


def build_parser(prog: str = "python -m sat_vg.backbone_finetuning.train") -> ArgumentParser:
    """The parser of the training command."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog=prog,
        usage="%(prog)s [--config FILE] [--dry_run] [--print_config] [--FIELD VALUE ...]",
        description=_DESCRIPTION,
        exit_on_error=False,
        print_config=None,
        formatter_class=_Formatter,
    )
    parser.add_argument("--config", action="config", help="A YAML file with any of the fields below.")
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="Print the data, the phases with their trainable stages, steps and batch shapes; train nothing.",
    )
    parser.add_argument(
        "--print_config",
        action="store_true",
        help="Print the configuration as YAML, ready for --config, and leave.",
    )
    parser.add_class_arguments(FinetuneConfig, None)
    return parser


def parse_command_line(
    arguments: list[str], prog: str = "python -m sat_vg.backbone_finetuning.train"
) -> TrainCommand:
    """Read the command line. ``--help`` and ``--print_config`` print and leave through ``SystemExit(0)``.

    Flags outrank the YAML file, which outranks a ``config = FinetuneConfig(...)`` in finetune_config.py, and that the
    defaults there. Where none of them gives a ``dataset_path`` or a ``dataset``, the run is one on the built-in
    scenes, whose settings take the place of defaults that nobody changed.

    Raises:
        ConfigError: a flag or field is unknown (the nearest known one is named), or a value is invalid.
    """
    arguments = with_negative_numbers(arguments)
    arguments = [
        _lists_in_brackets(argument, before) for before, argument in zip(["", *arguments], arguments, strict=False)
    ]
    require_all_fields(FinetuneConfig.field_names())
    named = _names_given(arguments)
    edited = edited_settings()
    parser = build_parser(prog)
    parser.set_defaults(edited)
    try:
        namespace = parser.parse_args(arguments)
    except ArgumentError as error:
        raise ConfigError(_readable(str(error))) from None
    given = edited | {name: namespace[name] for name in named}
    has_images = given.get("dataset_path") is not None or given.get("dataset") is not None
    scenes = {} if has_images else SCENES_DEFAULTS
    config = FinetuneConfig.of(given, scenes, _origins(edited, named, scenes))
    if namespace["print_config"]:
        print(config.as_yaml(), end="")
        raise SystemExit(0)
    return TrainCommand(config, dry_run=bool(namespace["dry_run"]))


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


def _origins(edited: Mapping[str, Any], named: set[str], scenes: Mapping[str, Any]) -> list[str]:
    """Where the settings come from that stand neither on the command line nor in the YAML file, in lines."""
    lines = []
    for place, values, above in (
        (_place(), edited, named),
        ("the built-in scenes", scenes, named | edited.keys()),
    ):
        taken = [f"{name} = {value!r}" for name, value in values.items() if name not in above]
        if taken:
            lines.append(f"settings of {place}: {', '.join(taken)}")
    return lines


def _names_given(arguments: list[str]) -> set[str]:
    """The fields that the flags and the YAML file set.

    Raises:
        ConfigError: a name is no field.
    """
    known = FinetuneConfig.field_names()
    flags = [
        argument[2:].partition("=")[0] for argument in arguments if argument.startswith("--") and argument != "--"
    ]
    explain_unknown_fields(flags, (*known, *_OWN_FLAGS), place="the command line")
    names = set(flags) - set(_OWN_FLAGS)
    for position, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name == "--config":
            file = value or (arguments[position + 1] if position + 1 < len(arguments) else "")
            of_file = read_yaml(file)
            explain_unknown_fields(of_file, known, place=f"the config file {file!r}")
            names |= of_file.keys()
    return names


def _lists_in_brackets(argument: str, before: str) -> str:
    """``--unfreeze_layers layer3,layer4`` as people write it, in the form that the parser reads."""
    for flag in (f"--{name}" for name in LIST_FIELDS):
        if before == flag and not argument.startswith(("[", "--")) and argument != "null":
            return f"[{argument}]"
        if argument.startswith(f"{flag}=") and not argument.startswith((f"{flag}=[", f"{flag}=null")):
            return f"{flag}=[{argument.partition('=')[2]}]"
    return argument


def _readable(message: str) -> str:
    """The parser's message in the words of our own checks."""
    field = re.search(r'key "(\w+)"', message)
    value = re.search(r"(?:Got|Given) value: (.*)", message)
    if field and value and field.group(1) in RULES:
        return "the configuration has 1 problem:\n  " + describe_problem(field.group(1), value.group(1))
    return message + "; --help lists all fields"
