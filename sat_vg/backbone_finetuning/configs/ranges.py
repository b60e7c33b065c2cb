"""Types of settings that say which values are allowed: ``learning_rate: PositiveFloat = 3e-4``.

The check of a field and its message are derived from its type, for any dataclass of settings. Free of torch.
"""

import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from sat_vg.backbone_finetuning.configs.choices import AUGMENTATION_STEPS, AugmentationStep
from sat_vg.backbone_finetuning.utils.errors import ConfigError

_LARGEST = {float: sys.float_info.max, int: 2**63 - 1}  # neither infinite nor NaN; whole numbers that torch can hold


@dataclass(frozen=True)
class Range:
    """Limits of a number, as part of its type: ``Annotated[float, Range(above=0, example=0.1)]``.

    Attributes:
        example: an allowed value, for the message where the field's default is none.
        lowest: the smallest allowed value.
        highest: the largest allowed value.
        above: a value that all allowed ones are above.
        below: a value that all allowed ones are below.
    """

    example: float
    lowest: float = -math.inf
    highest: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def __contains__(self, number: float) -> bool:
        return self.lowest <= number <= self.highest and self.above < number < self.below

    def __str__(self) -> str:
        """The limits in words, to be put after "a number" or "a whole number"."""
        limits = (self.lowest, self.above, self.below, self.highest)
        lowest, above, below, highest = map(math.isfinite, limits)
        if lowest and highest:
            return f" from {self.lowest} to {self.highest}"
        if lowest and below:
            return f" from {self.lowest} up to but not including {self.below}"
        words = [f"of {self.lowest} or more"] * lowest + [f"above {self.above}"] * above
        words += [f"below {self.below}"] * below + [f"up to {self.highest}"] * highest
        return f" {' and '.join(words)}" if words else ""


@dataclass(frozen=True)
class Remedy:
    """What to write instead of a wrong value, as part of a type: ``Annotated[str, Remedy("auto or cpu")]``."""

    text: str


@dataclass(frozen=True)
class Rule:
    """What a field may hold; written into its type where no other type says it.

    Attributes:
        holds: tells whether a value is allowed; called with any value at all.
        allowed: the same in words, for the message.
        example: an allowed value.
        remedy: what to write instead, where an example does not say it.
    """

    holds: Callable[[Any], bool]
    allowed: str
    example: Any = None
    remedy: str | None = None

    def problem(self, name: str, value: Any) -> str:
        """One line on an invalid value: field, value, what is allowed, and the remedy."""
        remedy = "leave it out" if self.example is None else f"for example {self.example}"
        if isinstance(value, (int, float)) and not isinstance(value, bool) and self.holds(str(value)):
            remedy = f"a text that looks like a number needs quotes in YAML: {str(value)!r}"
        else:
            remedy = self.remedy or remedy
        is_too_large = isinstance(value, int) and abs(value) > _LARGEST[int]
        allowed = f"{self.allowed}, below 2**63" if is_too_large else self.allowed
        return f"{name} = {value!r}: must be {allowed}; {remedy}"


PositiveInt = Annotated[int, Range(lowest=1, example=8)]
WholeNumber = Annotated[int, Range(lowest=0, example=4)]
PositiveFloat = Annotated[float, Range(above=0, example=1.0)]
NonNegativeFloat = Annotated[float, Range(lowest=0, example=0.1)]
Fraction = Annotated[float, Range(above=0, below=1, example=0.2)]
Probability = Annotated[float, Range(lowest=0, below=1, example=0.1)]
LearningRateFactor = Annotated[float, Range(above=0, highest=1, example=0.8)]
AreaShare = Annotated[float, Range(above=0, highest=1, example=0.35)]
ImageSize = Annotated[int, Range(lowest=16, highest=4096, example=224)]
DifferentSizes = Annotated[
    tuple[int, ...],
    Rule(
        lambda value: _LIST_OF_SIZES.holds(value) and len(value) == len(set(value)),
        "a list of different whole numbers, 16 to 4096",
        "[96, 128]",
    ),
]


def _is_folder_name(value: Any) -> bool:
    return isinstance(value, str) and value.strip() not in ("", ".", "..") and not set(value) & set("/\\\0")


FolderName = Annotated[str, Rule(_is_folder_name, "the name of a folder in dataset_path, without slashes")]
RunName = Annotated[str, Rule(_is_folder_name, "a name for a folder, without slashes", "resnet50_lr3e-4")]


def parse_augmentation_step(text: str) -> tuple[AugmentationStep, float]:
    """Name and strength of an entry of ``augmentation_steps``, such as ``rotation`` or ``rotation=30``.

    Raises:
        ValueError: it is none.
    """
    name, has_strength, strength = text.partition("=")
    if name not in AUGMENTATION_STEPS:
        raise ValueError(name)
    usual, largest = AUGMENTATION_STEPS[name]
    value = float(strength) if has_strength else usual
    if not 0 < value <= largest:
        raise ValueError(strength)
    return cast(AugmentationStep, name), value


def _is_augmentation_step(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(parse_augmentation_step(value))
    except ValueError:
        return False


AugmentationStepText = Annotated[
    str,
    Rule(
        _is_augmentation_step,
        "NAME or NAME=STRENGTH, with one of the names "
        + ", ".join(f"{name} (up to {largest:g})" for name, (_, largest) in AUGMENTATION_STEPS.items()),
        remedy="for example rotation=30,noise",
    ),
]


def parse_phase_stages(text: str) -> tuple[tuple[str, ...], ...]:
    """What ``phase_stages`` says: the names of each phase, such as ``(("head",), ("layer3", "layer4"))``."""
    return tuple(tuple(name.strip() for name in phase.split(",")) for phase in text.split(";"))


PhaseStages = Annotated[
    str,
    Rule(
        lambda value: isinstance(value, str) and all(all(phase) for phase in parse_phase_stages(value)),
        "names of stages, with ; between phases",
        remedy='for example "head; layer4; all"',
    ),
]
Separator = Annotated[
    str,
    Rule(
        lambda value: isinstance(value, str) and value != "" and not any(c.isalnum() or c in "\0\r\n" for c in value),
        "one or more characters that are no letters or digits",
        remedy='for example "|", "," or " "',
    ),
]
_POLICY = re.compile(r"error|skip(:(0|1|1\.0+|0?\.\d+|\d(\.\d+)?e-\d+))?", re.ASCII)
BadImagePolicy = Annotated[
    str,
    Rule(
        lambda value: isinstance(value, str) and _POLICY.fullmatch(value) is not None,
        "error or skip, or skip: and a share from 0 to 1",
        remedy="for example skip:0.05 to leave out up to 5 %",
    ),
]


def parse_bad_image_policy(policy: str) -> tuple[Literal["error", "skip"], float]:
    """What ``on_bad_image`` says: what to do, and the largest share of all images that may be left out."""
    action, _, share = policy.partition(":")
    return ("error" if action == "error" else "skip"), float(share or 0.01)


@cache
def rules_of(settings: type) -> Mapping[str, Rule]:
    """The rule of each field of a dataclass, derived from its type; the example in its message is its default."""
    hints = get_type_hints(settings, include_extras=True)
    rules = {field.name: (rule_of(hints[field.name]), field.default) for field in fields(settings)}
    # 0 mostly switches something off, so it is no useful example.
    return {
        name: replace(rule, example=default) if default and rule.holds(default) else rule
        for name, (rule, default) in rules.items()
    }


def rule_of(kind: Any) -> Rule:
    """What a value of a type may be, such as ``PositiveInt | None`` or ``Literal["a", "b"]``.

    Raises:
        ConfigError: settings are of no such type.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _annotated(parts[0], parts[1:])
    if origin is Literal:
        return Rule(lambda value: isinstance(value, str) and value in parts, " or ".join(parts), parts[0])
    if origin in (Union, UnionType):  # the first of several types gives the example
        return _union(parts)
    if origin in (tuple, list):
        return _list(rule_of(parts[0]))
    if kind is bool:
        return Rule(lambda value: isinstance(value, bool), "true or false", remedy="for example true")
    if kind in (int, float):
        return _number(kind, Range(example=1))
    if kind is str:
        return Rule(_is_text, "a text that is not empty")
    raise ConfigError(f"a field of settings has the type {kind}; use one of configs/ranges.py or configs/choices.py")


def _annotated(kind: Any, extras: tuple[Any, ...]) -> Rule:
    rule: Rule | None = None
    for extra in extras:
        if isinstance(extra, Rule):
            rule = extra
        elif isinstance(extra, Range):
            rule = _number(kind, extra)
        elif isinstance(extra, Remedy):
            rule = replace(rule or rule_of(kind), remedy=extra.text)
    return rule or rule_of(kind)


def _number(kind: type, limits: Range) -> Rule:
    def holds(value: Any) -> bool:
        is_number = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
        return is_number and abs(value) <= _LARGEST[kind] and value in limits

    return Rule(holds, f"a {'whole ' if kind is int else ''}number{limits}", limits.example)


def _union(parts: tuple[Any, ...]) -> Rule:
    rules = [rule_of(part) for part in parts if part is not NoneType]
    or_unset = len(rules) < len(parts)
    allowed = ", or ".join(rule.allowed for rule in rules) + (" or null" if or_unset else "")
    return replace(
        rules[0],
        holds=lambda value: or_unset if value is None else any(rule.holds(value) for rule in rules),
        allowed=allowed.replace(" or null", ", or null") if "list" in allowed else allowed,
    )


def _list(entry: Rule) -> Rule:
    plural = (
        entry.allowed.removeprefix("a ").replace("number", "numbers", 1).replace("text that is", "texts that are")
    )
    return replace(
        entry,
        holds=lambda value: isinstance(value, (tuple, list)) and len(value) > 0 and all(map(entry.holds, value)),
        allowed=f"a list of {plural}",
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != "" and "\0" not in value


_LIST_OF_SIZES = rule_of(tuple[ImageSize, ...])
