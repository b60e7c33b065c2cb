"""Checks of a configuration that name every problem at once, with the remedy."""

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sat_vg.backbone_finetuning.configs.ranges import rules_of
from sat_vg.backbone_finetuning.utils.errors import ConfigError

_ALL_FIELDS = "python -m sat_vg.backbone_finetuning.train --help lists all fields"


def check_fields(settings: type, values: Mapping[str, Any]) -> None:
    """Check every field by itself, by the rule that its type gives.

    Raises:
        ConfigError: lists every problem with field, value, what is allowed, and the remedy.
    """
    rules = rules_of(settings)
    refuse_problems(
        [rule.problem(name, values[name]) for name, rule in rules.items() if not rule.holds(values[name])]
    )


def refuse_problems(problems: Sequence[str]) -> None:
    """Raise a ConfigError that lists the problems, if there are any."""
    if problems:
        heading = (
            "the configuration has 1 problem"
            if len(problems) == 1
            else f"{len(problems)} problems in the configuration"
        )
        raise ConfigError("\n  ".join([f"{heading}:", *problems]))


def require_all_fields(shipped: Iterable[str], names: Collection[str]) -> None:
    """Refuse a class of settings that was edited so that a line no longer declares a field.

    Raises:
        ConfigError: names the field.
    """
    lost = [name for name in shipped if name not in names]
    if lost:
        raise ConfigError(
            f"FinetuneConfig has lost its field {lost[0]!r}: in finetune_config.py write it with its type, as in "
            "'num_epochs: PositiveInt = 50'"
        )


def explain_unknown_fields(
    names: Iterable[str], known: Iterable[str], place: str = "the configuration", hint: str = _ALL_FIELDS
) -> None:
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
        raise ConfigError(f"{place} has no field " + ", no field ".join(lines) + f"\n  {hint}")
