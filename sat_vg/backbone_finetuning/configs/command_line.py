"""The command line of the training command, made from FinetuneConfig: flags over YAML over edited defaults."""

import re
import sys
from argparse import SUPPRESS, ArgumentError, RawDescriptionHelpFormatter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

import docstring_parser
from jsonargparse import ArgumentParser

from sat_vg.backbone_finetuning.configs.finetune_config import (
    SCENES_DEFAULTS,
    TOPICS,
    FinetuneConfig,
    shipped_defaults,
)
from sat_vg.backbone_finetuning.configs.option_parser import is_list, placeholder
from sat_vg.backbone_finetuning.configs.plain_values import as_argument
from sat_vg.backbone_finetuning.configs.retired import RETIRED
from sat_vg.backbone_finetuning.configs.validation import explain_unknown_fields, require_all_fields
from sat_vg.backbone_finetuning.configs.yaml_files import read_yaml
from sat_vg.backbone_finetuning.utils.errors import ConfigError

_DESCRIPTION = """\
Fine-tune a torchvision backbone on satellite or aerial images in class folders or a table.

  own images     %(prog)s --dataset_path DIR --backbone resnet50
  a table        %(prog)s --dataset_path FILE.csv --backbone resnet50
  a known set    %(prog)s --dataset eurosat --backbone resnet50
  a recipe       %(prog)s --config configs/NAME.yaml --dataset_path DIR
  dry run        %(prog)s --dataset_path DIR --dry_run
  no arguments   a small run on built-in scenes, done within minutes on two CPU cores

Results: CHECKPOINT_DIR/best_model.pt (the product), CHECKPOINT_DIR/last.pt (to resume from; the same command
resumes), LOG_DIR (TensorBoard and metrics.jsonl). Exit codes: 0 done, 1 stopped by an error while running,
2 a setting or an input is wrong, 130 stopped by Ctrl-C, 75 by SIGTERM or SIGUSR1 (after both the same command
resumes).
"""
_OWN_FLAGS = ("config", "print_config", "dry_run", "help")


@dataclass(frozen=True)
class TrainCommand:
    """What the command line asked for."""

    config: FinetuneConfig
    dry_run: bool


def build_parser(prog: str = "python -m sat_vg.backbone_finetuning.train") -> ArgumentParser:
    """The parser of the training command; its namespace holds only the fields that were given."""
    parser = ArgumentParser(
        prog=prog,
        usage="%(prog)s [--config FILE] [--dry_run] [--print_config] [--FIELD VALUE ...]",
        description=_DESCRIPTION,
        exit_on_error=False,
        print_config=None,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", action="append", metavar="FILE", help="YAML file with any of the fields below.")
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="Print the data, the phases with their trainable stages, steps and batch shapes; train nothing.",
    )
    parser.add_argument(
        "--print_config", action="store_true", help="Print the configuration as YAML, ready for --config, and exit."
    )
    texts = {entry.arg_name: entry.description for entry in docstring_parser.parse_from_object(FinetuneConfig).params}
    types, headings = get_type_hints(FinetuneConfig), {first: topic for topic, first in TOPICS.items()}
    group: Any = parser
    for name, default in FinetuneConfig.defaults().items():
        if name in headings:
            group = parser.add_argument_group(headings[name])
        text = f"{texts.get(name)}" + ("" if default is None else f" (default: {as_argument(default)})")
        group.add_argument(
            f"--{name}",
            type=types[name],
            default=SUPPRESS,
            metavar=placeholder(types[name]),
            help=text.replace("%", "%%"),
        )
    for name in RETIRED:
        parser.add_argument(f"--{name}", type=int | float | str, default=SUPPRESS, help=SUPPRESS)
    return parser


def parse_command_line(
    arguments: list[str], prog: str = "python -m sat_vg.backbone_finetuning.train"
) -> TrainCommand:
    """Read the command line. ``--help`` and ``--print_config`` print and leave through ``SystemExit(0)``.

    Flags outrank the YAML file, which outranks a ``config = FinetuneConfig(...)`` in finetune_config.py, which
    outranks the defaults there. Where none of them gives a ``dataset_path`` or a ``dataset``, the run uses the
    built-in scenes, whose settings replace the defaults that nobody changed.

    Raises:
        ConfigError: a flag or field is unknown (the nearest known one is named), or a value is invalid.
    """
    require_all_fields(shipped_defaults(), FinetuneConfig.field_names())
    flags = _parse_flags(arguments, prog)
    own = {name: flags.pop(name) for name in ("config", "dry_run", "print_config")}
    from_files: dict[str, Any] = {}
    for path in own["config"] or ():
        from_file = read_yaml(path)
        explain_unknown_fields(from_file, _known(), place=f"the config file {path!r}")
        from_files |= from_file
    edited, named = edited_settings(), from_files | flags
    given = edited | named
    has_images = given.get("dataset_path") is not None or given.get("dataset") is not None
    scenes = {} if has_images else SCENES_DEFAULTS
    config = FinetuneConfig.of(given, scenes, _origins(edited, named, scenes))
    if own["print_config"]:
        print(config.as_yaml(), end="")
        raise SystemExit(0)
    return TrainCommand(config, dry_run=own["dry_run"])


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


def _known() -> tuple[str, ...]:
    return (*FinetuneConfig.field_names(), *RETIRED)


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


def _parse_flags(arguments: list[str], prog: str) -> dict[str, Any]:
    """The flags that were given; a value that is not of its field's type stays a text, for the check to name it."""
    flags = [argument[2:].partition("=")[0] for argument in arguments if re.match("--.", argument)]
    explain_unknown_fields(flags, (*_known(), *_OWN_FLAGS), place="the command line")
    arguments = _with_values_joined(arguments)
    parser, wrong = build_parser(prog), dict[str, Any]()
    while True:
        try:
            return vars(parser.parse_args(arguments)) | wrong
        except ArgumentError as error:
            found = re.search(r'key "(\w+)"', str(error))
            if found is None:
                raise ConfigError(f"{error}; --help lists all fields") from None
            start = f"--{found.group(1)}="
            wrong[found.group(1)] = next(a for a in reversed(arguments) if a.startswith(start)).removeprefix(start)
            arguments = [argument for argument in arguments if not argument.startswith(start)]


def _with_values_joined(arguments: list[str]) -> list[str]:
    """``--unfreeze_layers layer3,layer4`` as ``--unfreeze_layers=[layer3,layer4]``, and the like for every field.

    Joined to its flag, a negative number such as -3.4e38 is not mistaken for another flag.
    """
    lists = {name for name, kind in get_type_hints(FinetuneConfig).items() if is_list(kind)}
    joined, rest = list[str](), list(arguments)
    while rest:
        flag, has_value, value = rest.pop(0).partition("=")
        name = flag.removeprefix("--")
        if name in _known() and flag != name and not has_value and rest and not rest[0].startswith("--"):
            has_value, value = "=", rest.pop(0)
        if name in lists and has_value and not value.startswith("[") and value != "null":
            value = f"[{value}]"
        if name in _known():  # given twice, the last one counts
            joined = [argument for argument in joined if not argument.startswith(f"{flag}=")]
        joined.append(f"{flag}{has_value}{value}")
    return joined
