"""The command line of a command, made from the dataclass of its options."""

import difflib
import json
import re
import sys
from argparse import ArgumentError, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import docstring_parser
from jsonargparse import ArgumentParser

from sat_vg.backbone_finetuning.configs.plain_values import as_argument
from sat_vg.backbone_finetuning.configs.ranges import Rule, rules_of
from sat_vg.backbone_finetuning.utils.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Options = TypeVar("Options", bound="DataclassInstance")
_NEGATIVE_NUMBER = re.compile(r"-\.?\d")
_PLACEHOLDERS = {int: "N", float: "X", str: "TEXT", bool: "true|false"}
_INTEGER = re.compile(r"-?\d+", re.ASCII)


def parse_options(
    kind: type[Options],
    arguments: Sequence[str] | None,
    prog: str,
    description: str,
    positionals: Mapping[str, str] | None = None,
    renamed: Mapping[str, str] | None = None,
    usage: str | None = None,
) -> Options:
    """Read a command line. ``--help`` prints and leaves through ``SystemExit(0)``.

    Args:
        kind: a dataclass with a docstring under each field. A boolean option without a value is true; a list has
            commas between its entries.
        arguments: without the program's name; None: those of this process.
        prog: the command's name, such as ``sat-vg check``.
        description: for the help; ``%(prog)s`` stands for the name.
        positionals: fields that are given by position, with the word that stands for each in the help. A tuple takes
            one or more values; one with a default may be left out.
        renamed: spellings of the version before, which still work with a hint on standard error: ``{"old": "new"}``,
            ``{"old": "new=value"}``, ``{"name=old": "name=new"}``.
        usage: first line of the help, where it is not the usual one.

    Raises:
        ConfigError: an option is unknown (the nearest known one is named) or has a wrong value.
    """
    positionals = positionals or {}
    flags, words = _split(sys.argv[1:] if arguments is None else arguments, kind, positionals, renamed or {}, prog)
    parser = _build_parser(kind, prog, description, positionals)
    parser.usage = usage or parser.usage
    required = [positionals[field.name] for field in fields(kind) if field.default is MISSING]
    if len(words) < len(required) and "--help" not in flags:
        raise ConfigError(f"{prog} needs {' and '.join(required)}; {prog} --help lists all options")
    try:
        namespace = parser.parse_args([*flags, "--", *words] if words else flags)
    except ArgumentError as error:
        raise ConfigError(_explain(str(error), flags, rules_of(kind), prog)) from None
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in namespace.items()}
    for name, rule in rules_of(kind).items():
        # Texts are checked where they are used, in words that say what they are for.
        is_text_or_unset = isinstance(values[name], (str, NoneType)) or name in positionals
        if not is_text_or_unset and not rule.holds(values[name]):
            raise ConfigError(f"--{name} {as_argument(values[name])}: must be {_allowed(rule)}")
    return kind(**values)


def _build_parser(
    kind: "type[DataclassInstance]", prog: str, description: str, positionals: Mapping[str, str]
) -> ArgumentParser:
    types = get_type_hints(kind)
    texts = {entry.arg_name: entry.description or "" for entry in docstring_parser.parse_from_object(kind).params}
    parser = ArgumentParser(
        prog=prog,
        description=description,
        exit_on_error=False,
        print_config=None,
        formatter_class=RawDescriptionHelpFormatter,
    )
    usage = ["%(prog)s"]
    for field in fields(kind):
        name, is_required, text = field.name, field.default is MISSING, texts[field.name]
        word, more = positionals.get(name), dict[str, Any]()
        if word is None:
            text += "" if field.default is None else f" (default: {as_argument(field.default)})"
            more = {"type": types[name], "default": field.default, "metavar": placeholder(types[name])}
        else:
            counts = ("+", "*") if is_list(types[name]) else (None, "?")
            more = {"type": str, "nargs": counts[not is_required], "metavar": word}
            usage.append(f"[{word}]" if not is_required else f"{word} ..." if is_list(types[name]) else word)
        parser.add_argument(f"--{name}" if word is None else name, help=text.replace("%", "%%"), **more)
    parser.usage = " ".join([*usage, "[--OPTION VALUE ...]"])
    return parser


def _split(
    arguments: Sequence[str],
    kind: "type[DataclassInstance]",
    positionals: Mapping[str, str],
    renamed: Mapping[str, str],
    prog: str,
) -> tuple[list[str], list[str]]:
    """Options, all in the form ``--name=value``, and what is given by position."""
    types, rules = get_type_hints(kind), rules_of(kind)
    flags: list[str] = []
    words: list[str] = []
    rest = list(arguments)
    known = [*renamed, *(name for name in types if name not in positionals)]
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            return flags, words + rest
        if argument in ("-h", "--help"):
            flags.append("--help")
            continue
        if not argument.startswith("--"):
            words.append(argument)
            continue
        name, has_value, value = argument[2:].partition("=")
        new = renamed.get(name, name)
        if name not in known:
            raise ConfigError(_unknown(name, known, prog))
        is_switch = "=" in new or bool in union_parts(types[new])
        if not has_value and rest and (_is_value(rest[0], is_switch) or f"{name}={rest[0]}" in renamed):
            has_value, value = "=", rest.pop(0)
        elif not has_value and is_switch:
            value = "true"
        elif not has_value:
            raise ConfigError(f"--{name} needs a value: it must be {_allowed(rules[new])}")
        new, value = _current_spelling(name, value, positionals, renamed)
        if new in positionals:
            words.append(value)
        else:
            flags.append(f"--{new}={_as_json(value, types[new]) if is_list(types[new]) else value}")
    return flags, words


def _is_value(argument: str, is_switch: bool) -> bool:
    """Whether an argument behind an option is its value."""
    if is_switch:
        return argument.lower() in ("true", "false", "null")
    return not argument.startswith("-") or argument == "-" or _NEGATIVE_NUMBER.match(argument) is not None


def _current_spelling(
    name: str, value: str, positionals: Mapping[str, str], renamed: Mapping[str, str]
) -> tuple[str, str]:
    """Name and value of an option in the spelling of this version, with a hint where that is another one."""
    new = renamed.get(name, renamed.get(f"{name}={value}"))
    if new is None:
        return name, value
    new_name, has_value, new_value = new.partition("=")
    old = f"--{name} {value}" if name == new_name else f"--{name}"
    now = f"{positionals[new]}, without a flag" if new in positionals else f"--{new.replace('=', ' ')}"
    sys.stderr.write(f"{old} is now {now}; the old spelling works for one more version\n")
    return new_name, new_value if has_value else value


def _as_json(value: str, kind: Any) -> str:
    """``layer3,layer4`` as the parser reads it: with quotes and brackets."""
    if value == "null" or value.startswith("["):
        return value
    numbers = int in union_parts(get_args(union_parts(kind)[0])[0])
    parts = [part.strip() for part in value.removesuffix(",").split(",")]
    return json.dumps([int(part) if numbers and _INTEGER.fullmatch(part) else part for part in parts])


def _explain(message: str, flags: Sequence[str], rules: Mapping[str, Rule], prog: str) -> str:
    """The parser's message in one sentence with option, value, and what is allowed."""
    key = re.search(r'key "(\w+)"', message)
    if key and key.group(1) in rules:
        name = key.group(1)
        value = next(flag for flag in reversed(flags) if flag.startswith(f"--{name}=")).partition("=")[2]
        return f"--{name} {value}: must be {_allowed(rules[name])}"
    return f"{message}; {prog} --help lists all options"


def _unknown(name: str, known: Sequence[str], prog: str) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f": did you mean --{near[0]}?" if near else ";"
    return f"{prog} has no option --{name}{hint} {prog} --help lists all options"


def _allowed(rule: Rule) -> str:
    """What an option may be, with an example; without "or null", as an option may also be left out."""
    allowed = rule.allowed.removesuffix(" or null").removesuffix(",")
    return allowed if rule.example is None else f"{allowed}; for example {as_argument(rule.example)}"


def union_parts(kind: Any) -> list[Any]:
    """The types that a union may be, without None; of another type itself."""
    parts = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return [part for part in parts if part is not NoneType]


def is_list(kind: Any) -> bool:
    """Whether values of a type are lists, which are written with commas between their entries."""
    return any(get_origin(part) is tuple for part in union_parts(kind))


def placeholder(kind: Any) -> str:
    """What stands for a value in the help, such as ``N|auto``."""
    if is_list(kind):
        return "A,B"
    parts = union_parts(kind)
    return "|".join(
        "|".join(get_args(part)) if get_origin(part) is Literal else _PLACEHOLDERS[part] for part in parts
    )
