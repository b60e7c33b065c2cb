"""The type of a field says what it may hold, and its message follows from it."""

from dataclasses import dataclass
from typing import Annotated, Literal

import pytest

from sat_vg.backbone_finetuning.configs.ranges import (
    Fraction,
    ImageSize,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Probability,
    Range,
    Remedy,
    Rule,
    WholeNumber,
    rule_of,
    rules_of,
)
from sat_vg.backbone_finetuning.utils.errors import ConfigError

NEVER = (True, "x", (), [], {}, float("nan"), float("inf"), 10**400, 3 + 0j, object())


@pytest.mark.parametrize(
    ("kind", "words", "right", "wrong"),
    [
        (int, "a whole number", (-3, 0), (1.0, None)),
        (PositiveInt, "a whole number of 1 or more", (1, 9), (0, 1.0, None)),
        (WholeNumber | None, "a whole number of 0 or more or null", (0, None), (-1,)),
        (ImageSize, "a whole number from 16 to 4096", (16, 4096), (15, 4097)),
        (PositiveInt | Literal["auto"], "a whole number of 1 or more, or auto", (1, "auto"), (0, None, "Auto")),
        (PositiveFloat, "a number above 0", (1e-9, 3), (0, -1, None)),
        (NonNegativeFloat, "a number of 0 or more", (0, 3.5), (-1e-9,)),
        (Fraction, "a number above 0 and below 1", (0.5,), (0, 1)),
        (Probability, "a number from 0 up to but not including 1", (0, 0.99), (1, -0.1)),
        (Annotated[float, Range(1, above=0, highest=1)], "a number above 0 and up to 1", (1, 0.1), (0, 1.1)),
        (Annotated[float, Range(1, lowest=0, highest=1)], "a number from 0 to 1", (1, 0), (-0.1, 1.1)),
        (bool, "true or false", (True, False), (0, 1, None, "true")),
        (bool | None, "true or false or null", (True, None), (0,)),
        (Literal["a", "b"] | None, "a or b or null", ("a", None), ("c", "")),
        (tuple[PositiveInt, ...] | None, "a list of whole numbers of 1 or more, or null", ((1, 2), None), ((), (0,))),
        (tuple[str, ...], "a list of texts that are not empty", (("a",), ["a"]), ((), ("",), "a")),
        (Annotated[int, Rule(lambda value: value == 7, "seven")], "seven", (7,), (6, None)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_a_type_allows_and_how_it_is_said(kind, words, right, wrong):
    rule = rule_of(kind)
    assert rule.allowed == words
    for value in right:
        assert rule.holds(value), value
    for value in (*wrong, *NEVER):
        assert not rule.holds(value) or value in right, value


def test_whole_numbers_are_those_that_torch_can_hold():
    rule = rule_of(PositiveInt)
    assert rule.holds(2**63 - 1) and not rule.holds(2**63)
    assert (
        rule.problem("seed", 2**63)
        == f"seed = {2**63}: must be a whole number of 1 or more, below 2**63; for example 8"
    )
    assert rule_of(PositiveFloat).holds(10**30)


def test_a_text_is_not_blank_and_holds_no_nul():
    assert [rule_of(str).holds(value) for value in ("a", " a ", "", "  ", "a\0", 3)] == [True, True, *[False] * 4]


@dataclass(frozen=True, kw_only=True)
class Options:
    rate: PositiveFloat = 0.25
    clip: NonNegativeFloat = 0.0
    steps: PositiveInt | None = None
    broken: WholeNumber = -5
    device: Annotated[str, Remedy("auto or cpu")] = "auto"
    names: tuple[str, ...] | None = None


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("rate", "for example 0.25"),
        ("clip", "for example 0.1"),
        ("steps", "for example 8"),
        ("broken", "for example 4"),
        ("device", "auto or cpu"),
        ("names", "leave it out"),
    ],
)
def test_the_example_is_the_default_unless_that_switches_something_off(name, remedy):
    assert rules_of(Options)[name].problem(name, "?").endswith(f"; {remedy}")
    assert rules_of(Options)[name].problem(name, "?").startswith(f"{name} = '?': must be ")


def test_a_type_that_no_setting_has_is_refused():
    with pytest.raises(ConfigError, match="has the type"):
        rule_of(dict[str, int])
