"""Defaults that make room for what was set: only settings that somebody chose can contradict one another."""

import math
from collections.abc import Collection, Mapping
from typing import Any

# Defaults as they come with the package, of the fields that the built-in scenes or the rules below may change, and
# of those that tell whether it is the scenes: one that reads otherwise in finetune_config.py was edited there, and
# counts as set.
SHIPPED: dict[str, Any] = {
    "dataset_path": None,
    "dataset": None,
    "backbone": "resnet50",
    "pretrained": True,
    "image_size": None,
    "freeze_early_layers": False,
    "probe_solver": "exact",
    "batch_size": 32,
    "num_epochs": 20,
    "learning_rate": 3e-4,
    "weight_decay": 1e-3,
    "warmup_epochs": 1.0,
    "lr_step_size": 7,
    "min_lr": 1e-6,
    "ema_decay": 0.0,
    "early_stopping_patience": 10,
    "log_dir": "logs/finetune",
    "checkpoint_dir": "checkpoints/finetune",
}
_SHORT_AVERAGE = 0.99


class _Adapting:
    """Values of a configuration while defaults among them make room."""

    def __init__(self, values: Mapping[str, Any], given: Collection[str]) -> None:
        self.values, self.given, self.notes = dict(values), given, list[str]()

    def may_change(self, name: str) -> bool:
        return name not in self.given

    def take(self, name: str, value: Any, cause: str) -> None:
        self.values[name] = value
        self.notes.append(f"{name}: {value}, as {cause} = {self.values[cause]}")


def adapt_defaults(values: Mapping[str, Any], given: Collection[str]) -> tuple[dict[str, Any], list[str]]:
    """Change defaults that do not go with what was set.

    Args:
        values: of all fields, each sound by itself.
        given: names of the fields that somebody set.

    Returns:
        The values, and a line for each that was changed. What was set is as it was, contradictions included.
    """
    state = _Adapting(values, given)
    _adapt_freezing(state)
    _adapt_epochs(state)
    _adapt_patience(state)
    _adapt_rates(state)
    _adapt_sizes(state)
    return state.values, state.notes


def _adapt_freezing(state: _Adapting) -> None:
    """What is trained, from which weights, and how the head is found."""
    values = state.values
    is_frozen = values["freeze_layers"] or values["freeze_early_layers"] or values["unfreeze_layers"]
    if values["strategy"] is None and values["last_layers"] != 1 and not is_frozen:
        state.take("strategy", "last_layers", "last_layers")
    names_stages = values["unfreeze_layers"] and not values["freeze_layers"] and not values["freeze_early_layers"]
    if names_stages and values["strategy"] is None and state.may_change("freeze_early_layers"):
        state.take("freeze_early_layers", True, "unfreeze_layers")
    if not values["pretrained"] and values["weights"] not in (None, "none") and state.may_change("pretrained"):
        state.take("pretrained", True, "weights")
    if values["probe_solver"] == "exact" and state.may_change("probe_solver"):
        cause = _what_needs_a_trained_probe(values)
        if cause is not None:
            state.take("probe_solver", "sgd", cause)
    if values["best_weights"] == "average" and not values["ema_decay"] and state.may_change("ema_decay"):
        state.take("ema_decay", _SHORT_AVERAGE, "best_weights")


def _what_needs_a_trained_probe(values: Mapping[str, Any]) -> str | None:
    """The field that does not go with an exact linear probe, if there is one."""
    strategy = values["strategy"]
    if strategy == "lp_ft" and values["phase_epochs"] is not None:
        return "phase_epochs"
    if strategy == "linear_probe" and values["wise_ft"]:
        return "wise_ft"
    if strategy == "linear_probe" and values["train_image_size"] is not None:
        return "train_image_size"
    if strategy in ("linear_probe", "lp_ft") and values["shard_weights"]:
        return "shard_weights"
    return None


def _adapt_epochs(state: _Adapting) -> None:
    """How long is trained and warmed up."""
    values = state.values
    sizes = values["train_image_size"] or ()
    phases = values["phase_epochs"] if values["strategy"] in ("progressive", "lp_ft") else None
    if state.may_change("num_epochs"):
        if phases is not None and sum(phases) != values["num_epochs"]:
            state.take("num_epochs", sum(phases), "phase_epochs")
        if len(sizes) > values["num_epochs"]:
            state.take("num_epochs", len(sizes), "train_image_size")
    if 1 < values["num_epochs"] <= values["warmup_epochs"]:
        if state.may_change("warmup_epochs"):
            state.take("warmup_epochs", values["num_epochs"] / 2, "num_epochs")
        elif state.may_change("num_epochs"):
            state.take("num_epochs", math.floor(values["warmup_epochs"]) + 1, "warmup_epochs")


def _adapt_patience(state: _Adapting) -> None:
    """How long a run waits for something better."""
    values = state.values
    patience = values["early_stopping_patience"]
    if values["lr_scheduler"] != "plateau" or not 0 < patience <= values["lr_step_size"]:
        return
    if state.may_change("lr_step_size"):
        state.take("lr_step_size", max(1, patience // 2), "early_stopping_patience")
    elif state.may_change("early_stopping_patience"):
        state.take("early_stopping_patience", 2 * values["lr_step_size"], "lr_step_size")


def _adapt_rates(state: _Adapting) -> None:
    values = state.values
    if values["min_lr"] > values["learning_rate"]:
        if state.may_change("min_lr"):
            state.take("min_lr", values["learning_rate"] / 100, "learning_rate")
        elif state.may_change("learning_rate"):
            state.take("learning_rate", values["min_lr"], "min_lr")


def _adapt_sizes(state: _Adapting) -> None:
    """Of batches and of images."""
    values = state.values
    micro, batch, sizes = values["micro_batch_size"], values["batch_size"], values["train_image_size"]
    if micro is not None and batch != "auto" and micro > batch and state.may_change("batch_size"):
        state.take("batch_size", micro, "micro_batch_size")
    is_too_large = sizes is not None and values["image_size"] is not None and max(sizes) > values["image_size"]
    if is_too_large and state.may_change("image_size"):
        state.take("image_size", max(sizes), "train_image_size")
