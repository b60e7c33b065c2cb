"""Command lines made from dataclasses: flags, help and messages follow from types and docstrings of the fields."""

import ast
import difflib
import inspect
import sys
import textwrap
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from itertools import pairwise
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from sat_vg.backbone_finetuning.configs.plain_values import as_argument
from sat_vg.backbone_finetuning.configs.ranges import Rule, rules_of
from sat_vg.backbone_finetuning.utils.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Options = TypeVar("Options", bound="DataclassInstance")
_PLACEHOLDERS = {int: ("N",), float: ("X",), str: ("TEXT",), bool: ("true", "false")}


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
    types, rules = get_type_hints(kind), rules_of(kind)
    arguments = sys.argv[1:] if arguments is None else arguments
    written, words = split_arguments(arguments, types, rules, prog, positionals, renamed)
    if "help" in written:
        print_help(kind, prog, description, usage or _usage(kind, positionals), positionals)
    values = {name: typed_value(texts[-1], types[name]) for name, texts in written.items()}
    for name, value in values.items():
        # Texts are checked where they are used, in words that say what they are for.
        if str not in _parts(types[name]) and not rules[name].holds(value):
            raise ConfigError(f"--{name} {as_argument(value)}: must be {_allowed(rules[name])}")
    for name in positionals:
        if words:
            count = len(words) if _is_list(types[name]) else 1
            values[name] = tuple(words[:count]) if _is_list(types[name]) else words[0]
            words = words[count:]
    lacking = [positionals[f.name] for f in fields(kind) if f.default is MISSING and f.name not in values]
    if lacking:
        raise ConfigError(f"{prog} needs {' and '.join(lacking)}; {prog} --help lists all options")
    refuse_words(words, prog)
    return kind(**values)


def split_arguments(
    arguments: Sequence[str],
    types: Mapping[str, Any],
    rules: Mapping[str, Rule],
    prog: str,
    positionals: Mapping[str, str] | None = None,
    renamed: Mapping[str, str] | None = None,
) -> tuple[dict[str, list[str]], list[str]]:
    """The texts that were given for each option, in order, and the words that are given by position.

    Raises:
        ConfigError: an option is unknown (the nearest known one is named) or lacks its value.
    """
    positionals, renamed = positionals or {}, renamed or {}
    written, words, rest = dict[str, list[str]](), list[str](), list(arguments)
    known = [*renamed, *(option for option in types if option not in positionals)]
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            return written, words + rest
        if argument in ("-h", "--help"):
            written["help"] = []
            continue
        if not argument.startswith("--"):
            words.append(argument)
            continue
        name, has_value, value = argument[2:].partition("=")
        if name not in known:
            raise ConfigError(_unknown(name, known, prog))
        new = renamed.get(name, name)
        is_switch = "=" in new or set(_parts(types[new])) <= {bool, NoneType}
        if not has_value and rest and (_is_value(rest[0], is_switch) or f"{name}={rest[0]}" in renamed):
            value = rest.pop(0)
        elif not has_value and is_switch:
            value = "true"
        elif not has_value:
            raise ConfigError(f"--{name} needs a value: it must be {_allowed(rules[new])}")
        new, value = _current_spelling(name, value, positionals, renamed)
        if new in positionals:
            words.append(value)
        else:
            written.setdefault(new, []).append(value)
    return written, words


def refuse_words(words: Sequence[str], prog: str, hint: str = "") -> None:
    """Raise a ConfigError if there are words that no option takes; ``hint`` says what may be meant."""
    if words:
        raise ConfigError(f"unrecognized arguments: {' '.join(words)}; {hint}{prog} --help lists all options")


def typed_value(text: str, kind: Any) -> Any:
    """A text as a value of a type, such as ``int | None``; the text itself where it is none."""
    parts = _parts(kind)
    if NoneType in parts and text == "null":
        return None
    for part in parts:
        if get_origin(part) is tuple:
            entries = text.removeprefix("[").removesuffix("]").removesuffix(",").split(",")
            return tuple(typed_value(entry.strip().strip("'\""), get_args(part)[0]) for entry in entries)
        if part is bool and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if part in (int, float) and text.isascii():
            try:
                return part(text)
            except ValueError:
                continue
    return text


def print_help(
    kind: "type[DataclassInstance]",
    prog: str,
    description: str,
    usage: str,
    positionals: Mapping[str, str] | None = None,
    topics: Mapping[str, str] | None = None,
    more: Sequence[tuple[str, str, str]] = (),
) -> NoReturn:
    """Print the help of a command and leave through ``SystemExit(0)``; for most arguments see ``parse_options``.

    ``topics`` are headings, by the first field below each; ``more`` are flags that are no fields, as
    ``(flag, placeholder, text)``.
    """
    parser = ArgumentParser(prog, usage, description, formatter_class=RawDescriptionHelpFormatter)
    for flag, word, text in more:
        parser.add_argument(flag, metavar=word, help=text)
    types, texts = get_type_hints(kind), _texts_of(kind)
    group: Any = parser
    for field in fields(kind):
        default, text = field.default, texts.get(field.name, "").replace("%", "%%")
        if positionals and field.name in positionals:
            parser.add_argument(field.name, metavar=positionals[field.name], help=text)
            continue
        if topics and field.name in topics:
            group = parser.add_argument_group(topics[field.name])
        shown = "" if default in (None, MISSING, ()) else f" (default: {as_argument(default)})".replace("%", "%%")
        group.add_argument(f"--{field.name}", metavar=_placeholder(types[field.name]), help=text + shown)
    parser.print_help()
    raise SystemExit(0)


def _texts_of(kind: type) -> dict[str, str]:
    """The docstring under each field of a class."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in pairwise(tree.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


def _usage(kind: "type[DataclassInstance]", positionals: Mapping[str, str]) -> str:
    types, words = get_type_hints(kind), ["%(prog)s"]
    for field in (field for field in fields(kind) if field.name in positionals):
        word = positionals[field.name]
        required = f"{word} ..." if _is_list(types[field.name]) else word
        words.append(required if field.default is MISSING else f"[{word}]")
    return " ".join([*words, "[--OPTION VALUE ...]"])


def _is_value(argument: str, is_switch: bool) -> bool:
    """Whether an argument behind an option is its value."""
    if is_switch:
        return argument.lower() in ("true", "false", "null")
    return not argument.startswith("-") or argument == "-" or argument[1:2] in {*"0123456789."}


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


def _unknown(name: str, known: Sequence[str], prog: str) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f": did you mean --{near[0]}?" if near else ";"
    return f"{prog} has no option --{name}{hint} {prog} --help lists all options"


def _allowed(rule: Rule) -> str:
    """What an option may be, with an example; without "or null", as an option may also be left out."""
    allowed = rule.allowed.removesuffix(" or null").removesuffix(",")
    if allowed.startswith("a list"):
        return f"{allowed}, with commas between"
    return allowed if rule.example is None else f"{allowed}; for example {as_argument(rule.example)}"


def _placeholder(kind: Any) -> str:
    """What stands for a value in the help, such as ``N|auto``."""
    if _is_list(kind):
        return "A,B"
    parts = [part for part in _parts(kind) if part is not NoneType]
    return "|".join(word for part in parts for word in _PLACEHOLDERS.get(part, get_args(part)))


def _parts(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _is_list(kind: Any) -> bool:
    return any(get_origin(part) is tuple for part in _parts(kind))
