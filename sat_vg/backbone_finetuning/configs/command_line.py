"""The command line of the training command, made from FinetuneConfig: flags over YAML over defaults."""

import re
from argparse import ArgumentError, RawDescriptionHelpFormatter
from dataclasses import dataclass
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings

from sat_vg.backbone_finetuning.configs.band_choice import with_negative_numbers
from sat_vg.backbone_finetuning.configs.finetune_config import LIST_FIELDS, SCENES_DEFAULTS, FinetuneConfig, read_yaml
from sat_vg.backbone_finetuning.configs.validation import RULES, describe_problem, explain_unknown_fields
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

    Where no ``dataset_path`` and no ``dataset`` is given, the defaults are those of a run on the built-in scenes.

    Raises:
        ConfigError: a flag or field is unknown (the nearest known one is named), or a value is invalid.
    """
    arguments = with_negative_numbers(arguments)
    arguments = [
        _lists_in_brackets(argument, before) for before, argument in zip(["", *arguments], arguments, strict=False)
    ]
    _check_names(arguments)
    parser = build_parser(prog)
    # Whether images are named decides the defaults, so it is looked up before the real parse.
    asks_for_help = not {"-h", "--help"}.isdisjoint(arguments)
    if not asks_for_help and not _names_images(arguments):
        parser.set_defaults(SCENES_DEFAULTS)
    try:
        namespace = parser.parse_args(arguments)
    except ArgumentError as error:
        raise ConfigError(_readable(str(error))) from None
    config = FinetuneConfig.from_dict({name: namespace[name] for name in FinetuneConfig.field_names()})
    if namespace["print_config"]:
        print(config.as_yaml(), end="")
        raise SystemExit(0)
    return TrainCommand(config, dry_run=bool(namespace["dry_run"]))


def _names_images(arguments: list[str]) -> bool:
    """Whether flags, or else the YAML file, give a dataset_path or a dataset."""
    of_file: dict[str, Any] = {}
    of_flags: dict[str, str | None] = {}
    for position, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if not value and position + 1 < len(arguments):
            value = arguments[position + 1]
        if name == "--config":
            of_file = read_yaml(value)
        if name in ("--dataset_path", "--dataset"):
            of_flags[name[2:]] = None if value in ("null", "") else value
    given = {**of_file, **of_flags}
    return given.get("dataset_path") is not None or given.get("dataset") is not None


def _check_names(arguments: list[str]) -> None:
    known = FinetuneConfig.field_names()
    flags = [
        argument[2:].partition("=")[0] for argument in arguments if argument.startswith("--") and argument != "--"
    ]
    explain_unknown_fields(flags, (*known, *_OWN_FLAGS), place="the command line")
    for position, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name == "--config":
            file = value or (arguments[position + 1] if position + 1 < len(arguments) else "")
            explain_unknown_fields(read_yaml(file), known, place=f"the config file {file!r}")


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
