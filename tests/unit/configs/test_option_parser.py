"""Command lines made from a dataclass: what is read, what is refused in which words, and the help."""

from dataclasses import dataclass
from typing import Literal

import pytest

from sat_vg.backbone_finetuning.configs.option_parser import parse_options
from sat_vg.backbone_finetuning.configs.ranges import PositiveInt
from sat_vg.backbone_finetuning.utils.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a command."""

    model: str
    """Path of a model."""
    images: tuple[str, ...] = ()
    """Files, 100 % of them."""
    out: str = "out"
    """Folder that is written."""
    bands: tuple[int | str, ...] | None = None
    """Bands. Unset: all."""
    sizes: tuple[int, ...] | None = None
    """Sizes."""
    shift: float | None = None
    """A number."""
    count: PositiveInt = 3
    """How many."""
    kind: Literal["one", "two"] = "one"
    """Which one."""
    json: bool = False
    """Print JSON."""
    with_head: bool | None = None
    """Write the head."""


RENAMED = {"output_dir": "out", "without_head": "with_head=false", "kind=zwei": "kind=two", "model_path": "model"}


def parse(*arguments: str) -> Options:
    positionals = {"model": "MODEL", "images": "IMAGE"}
    return parse_options(Options, arguments, "prog", "%(prog)s does it.", positionals, RENAMED)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), {}),
        (("a", "-", "--count", "4", "b"), {"images": ("a", "-", "b"), "count": 4}),
        (("--json", "a"), {"json": True, "images": ("a",)}),
        (("--json", "false", "--with_head"), {"json": False, "with_head": True}),
        (("--with_head=false",), {"with_head": False}),
        (("--bands", "4, B08,nir=8"), {"bands": (4, "B08", "nir=8")}),
        (("--bands", "a, b,"), {"bands": ("a", "b")}),
        (("--bands=null", "--sizes", "0,-1"), {"sizes": (0, -1)}),
        (("--shift", "-3.4e38"), {"shift": -3.4e38}),
        (("--out", "12", "--kind", "two"), {"out": "12", "kind": "two"}),
        (("--out=a=b", "--", "--json"), {"out": "a=b", "images": ("--json",)}),
    ],
)
def test_what_is_read(arguments, expected, capsys):
    assert parse("m.pt", *arguments) == Options(model="m.pt", **expected)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "expected", "hint"),
    [
        (("m", "--output_dir", "x"), {"out": "x"}, "--output_dir is now --out;"),
        (("m", "--output_dir=x"), {"out": "x"}, "--output_dir is now --out;"),
        (("m", "--without_head"), {"with_head": False}, "--without_head is now --with_head false;"),
        (("m", "--kind", "zwei"), {"kind": "two"}, "--kind zwei is now --kind two;"),
        (("--model_path", "m"), {}, "--model_path is now MODEL, without a flag;"),
    ],
)
def test_old_spellings_work_with_a_hint(arguments, expected, hint, capsys):
    assert parse(*arguments) == Options(model="m", **expected)
    err = capsys.readouterr().err
    assert err.startswith(hint)
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("m", "--cuont", "3"), "prog has no option --cuont: did you mean --count? prog --help lists all options"),
        (("m", "--qqqqq"), "prog has no option --qqqqq; prog --help lists all options"),
        (("m", "--model", "n"), "prog has no option --model"),
        (("m", "--count", "x"), "--count x: must be a whole number of 1 or more; for example 3"),
        (("m", "--count", "2.5"), "--count 2.5: must be a whole number"),
        (("m", "--count", "0"), "--count 0: must be a whole number of 1 or more; for example 3"),
        (("m", "--count"), "--count needs a value: it must be a whole number of 1 or more; for example 3"),
        (("m", "--shift", "--json"), "--shift needs a value: it must be a number; for example 1"),
        (("m", "--kind", "three"), "--kind three: must be one or two; for example one"),
        (("m", "--json=maybe"), "--json maybe: must be true or false"),
        (("m", "--sizes", "1,x"), "--sizes 1,x: must be a list of whole numbers, with commas between"),
        ((), "prog needs MODEL; prog --help lists all options"),
    ],
)
def test_a_wrong_argument_gets_a_sentence(arguments, message):
    with pytest.raises(ConfigError) as refused:
        parse(*arguments)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_help(capsys):
    with pytest.raises(SystemExit) as left:
        parse("--help")
    assert left.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    for part in (
        "usage: prog MODEL [IMAGE] [--OPTION VALUE ...]",
        "prog does it.",
        "IMAGE Files, 100 % of them.",
        "--out TEXT Folder that is written. (default: out)",
        "--bands A,B Bands. Unset: all. --sizes",
        "--kind one|two Which one. (default: one)",
        "--json true|false Print JSON. (default: false)",
    ):
        assert part in out, part


@pytest.mark.parametrize(
    "value",
    ["", "[", "[a", "{", "{a: [}", "!!python/name:os.system", "null", "\0", "'", "- -", "a: b", "1e999", "nan"],
)
@pytest.mark.parametrize("name", ["out", "bands", "sizes", "shift", "count", "kind", "json", "with_head"])
def test_odd_values_are_read_or_refused(name, value):
    try:
        found = parse("m", f"--{name}={value}")
    except ConfigError as error:
        assert str(error).startswith(f"--{name} ")
    else:
        assert isinstance(found, Options)
