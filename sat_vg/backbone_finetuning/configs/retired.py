"""Settings under other names, most from earlier versions, in files, flags and checkpoints: translated, and said."""

from collections.abc import Callable, Mapping
from typing import Any

from sat_vg.backbone_finetuning.utils.errors import ConfigError

_Given = Mapping[str, Any]


def translate_retired(given: _Given) -> tuple[dict[str, Any], list[str]]:
    """Settings in today's fields, and a line for each that was given in a retired one and has an effect.

    Raises:
        ConfigError: a retired setting has a value that it could not have, or contradicts another.
    """
    translated, notes = dict(given), []
    for name in [name for name in given if name in RETIRED]:
        del translated[name]
        for field, value in RETIRED[name](given).items():
            translated[field] = value
            notes.append(f"{name} = {given[name]!r} is now {field} = {value!r}")
    return translated, notes


def _freeze_layers(given: _Given) -> dict[str, Any]:
    count, other = given["freeze_layers"], given.get("freeze_early_layers")
    if isinstance(count, bool):
        raise ConfigError(
            f"freeze_layers = {count!r}: is now freeze_early_layers, and must be a whole number; "
            "for example freeze_early_layers = 2"
        )
    if count and other:
        raise ConfigError(
            f"freeze_layers = {count!r}: is now freeze_early_layers = {count!r}, and freeze_early_layers = {other!r} "
            "was given, too; leave one of the two out"
        )
    return {"freeze_early_layers": count} if count else {}


def _best_weights(given: _Given) -> dict[str, Any]:
    value, decay = given["best_weights"], given.get("ema_decay")
    if value not in ("auto", "average", "trained"):
        raise ConfigError(
            f"best_weights = {value!r}: is retired: with an ema_decay above 0 the average is validated and saved; "
            "leave best_weights out"
        )
    if value == "trained":
        return {"ema_decay": 0.0} if decay else {}
    return {"ema_decay": 0.99} if value == "average" and not decay else {}


def _max_bad_fraction(given: _Given) -> dict[str, Any]:
    value, policy = given["max_bad_fraction"], given.get("on_bad_image")
    return {"on_bad_image": f"skip:{value}"} if policy == "skip" and value != 0.01 else {}


def _freeze_backbone(given: _Given) -> dict[str, Any]:
    value, strategy = given["freeze_backbone"], given.get("strategy")
    if str(value).lower() not in ("true", "false"):
        raise ConfigError(
            f"freeze_backbone = {value!r}: must be true (the head alone is trained: strategy linear_probe) or false"
        )
    if str(value).lower() == "false":
        return {}
    if strategy not in (None, "linear_probe"):
        raise ConfigError(
            f"freeze_backbone = {value!r}: trains the head alone, and strategy = {strategy!r} was given, too; leave "
            "one of the two out"
        )
    return {"strategy": "linear_probe"}


# The retired field → what it means in today's, seen with the others that were given.
RETIRED: dict[str, Callable[[_Given], dict[str, Any]]] = {
    "freeze_layers": _freeze_layers,
    "best_weights": _best_weights,
    "max_bad_fraction": _max_bad_fraction,
    "freeze_backbone": _freeze_backbone,
}
