"""Checks of a checkpoint's content against the model and optimizer, before any of it is loaded.

A fused optimizer, for one, goes through the memory of a weight and of its averages in step and compares no shapes.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sat_vg.backbone_finetuning.utils.errors import CheckpointError

_PLAIN = (type(None), bool, int, float, str)
_SHOWN = 60  # characters of a value in a message
_NEVER_BELOW_ZERO = ("running_var", "num_batches_tracked", "exp_avg_sq")


def require_sound_numbers(content: Mapping[str, Any], defaults: Mapping[str, Any], later: Collection[str]) -> None:
    """Refuse a checkpoint whose plain numbers or settings no run saves; for the last arguments see ``wrong_numbers``.

    Raises:
        CheckpointError: names them.
    """
    problems = [*wrong_numbers(content["state"], defaults, later), *wrong_settings(content["config"])]
    if problems:
        raise CheckpointError(
            f"the checkpoint's {'; '.join(problems[:3])}, which no run saves; use an earlier checkpoint"
        )


def require_none(problems: Sequence[str]) -> None:
    """Refuse a checkpoint whose tensors are not those of the model.

    Raises:
        CheckpointError: there are ``problems``; it names the first.
    """
    if problems:
        more = f", and {len(problems) - 2} more" if len(problems) > 2 else ""
        raise CheckpointError(
            f"the checkpoint does not fit the model it is to go on with: {'; '.join(problems[:2])}{more}. It was "
            "altered, or belongs to another run: use an earlier checkpoint"
        )


def wrong_numbers(state: Mapping[Any, Any], defaults: Mapping[str, Any], later: Collection[str]) -> Iterator[str]:
    """What is wrong with the plain numbers of a run, each in a few words.

    Args:
        state: as it was read.
        defaults: of each field; whole numbers count something, so they are 0 or more.
        later: fields that earlier versions did not have.
    """
    for name, default in defaults.items():
        if name not in state:
            if name not in later:
                yield f"{name} is missing"
            continue
        value = state[name]
        if isinstance(default, bool):
            is_sound = isinstance(value, bool)
        elif isinstance(default, int):
            is_sound = type(value) is int and 0 <= value < 2**63
        elif isinstance(default, list):
            is_sound = isinstance(value, list) and all(map(_is_number, value))
        else:
            is_sound = _is_number(value) or (value is None and default is None)
        if not is_sound:
            yield f"{name} is {_format(value)}"


def wrong_settings(config: Mapping[Any, Any]) -> Iterator[str]:
    """What is wrong with the settings that a run was begun with: they are plain values and lists of such."""
    for name, value in config.items():
        parts = value if isinstance(value, list) else [value]
        if not isinstance(name, str) or not all(isinstance(part, _PLAIN) for part in parts):
            yield f"the setting {_format(name)} is {_format(value)}"


def wrong_tensors(what: str, found: Any, own: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with named tensors that are to be put in the place of others.

    Args:
        what: they are, for the message.
        found: as they were read.
        own: those whose places they take, by the same names.
    """
    if not isinstance(found, Mapping):
        yield f"{what} is {_format(found)}"
        return
    for name in [name for name in own if name not in found]:
        yield f"{what} lacks {name}"
    for name in [name for name in found if name not in own]:
        yield f"{what} has {_format(name)}, which the model has not"
    for name, tensor in own.items():
        if name in found:
            yield from _wrong_tensor(f"{what}: {name}", found[name], tensor.shape, tensor.dtype)


def wrong_optimizer(found: Mapping[str, Any], optimizer: Optimizer) -> Iterator[str]:
    """What is wrong with the state of an optimizer: its groups, and what it keeps for each parameter."""
    own_groups, groups = optimizer.state_dict()["param_groups"], found.get("param_groups")
    if not isinstance(groups, list) or len(groups) != len(own_groups):
        count = len(groups) if isinstance(groups, list) else _format(groups)
        yield f"the optimizer has {len(own_groups)} groups of parameters, the checkpoint {count}"
        return
    for own, group in zip(own_groups, groups, strict=True):
        yield from _wrong_group(own, group)
    state = found.get("state")
    if not isinstance(state, dict):
        yield f"the optimizer's state is {_format(state)}"
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for place, entries in state.items():
        if type(place) is not int or not 0 <= place < len(parameters) or not isinstance(entries, dict):
            yield f"the optimizer's state has {_format(place)}, which is none of its {len(parameters)} parameters"
            continue
        yield from _wrong_entries(f"the optimizer's parameter {place}", entries, parameters[place], optimizer)


def wrong_scaler(found: Mapping[str, Any], own: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the state of loss scaling."""
    if set(found) != set(own):
        yield f"loss scaling has {_format_names(found)}, and needs {_format_names(own)}"
        return
    for name, value in own.items():
        is_free = name in ("scale", "_growth_tracker")
        is_sound = _is_number(found[name]) and (found[name] >= 0 if is_free else found[name] == value)
        if not is_sound or (name == "scale" and found[name] == 0) or (name == "_growth_tracker" and found[name] % 1):
            yield f"loss scaling's {name} is {_format(found[name])}"


def _wrong_group(own: Mapping[str, Any], group: Any) -> Iterator[str]:
    name = own.get("name", "")
    if not isinstance(group, dict) or group.get("params") != own["params"]:
        yield f"the optimizer's group {name!r} does not hold the parameters that it has here"
        return
    lr: Any = group.get("lr")
    if not _is_number(lr) or lr < 0:
        yield f"the optimizer's group {name!r} has the learning rate {_format(lr)}"
    for key in ("name", "weight_decay", "lr_scale", "betas", "eps", "momentum", "nesterov"):
        if key in own and not _same_plain(group.get(key), own[key]):
            yield f"the optimizer's group {name!r} has {key} = {_format(group.get(key))}, here it is {own[key]!r}"


def _same_plain(found: Any, own: Any) -> bool:
    if isinstance(own, (tuple, list)):
        is_list = isinstance(found, (tuple, list)) and len(found) == len(own)
        return is_list and all(map(_same_plain, found, own))
    return isinstance(found, _PLAIN) and found == own


def _wrong_entries(where: str, entries: Mapping[Any, Any], parameter: Tensor, optimizer: Optimizer) -> Iterator[str]:
    is_adam = isinstance(optimizer, torch.optim.Adam)  # AdamW is one, too
    needed = ("step", "exp_avg", "exp_avg_sq") if is_adam else ("momentum_buffer",)
    if set(entries) != set(needed):
        yield f"{where} has {_format_names(entries)}, and needs {', '.join(needed)}"
        return
    for name, value in entries.items():
        if name != "step":
            yield from _wrong_tensor(f"{where}: {name}", value, parameter.shape, parameter.dtype)
            continue
        is_one = isinstance(value, Tensor) and value.shape == () and not value.is_complex()
        steps = float(value) if is_one else math.nan
        if not (math.isfinite(steps) and steps >= 1 and steps % 1 == 0):
            yield f"{where}: step is {_format(value)}"


def _wrong_tensor(where: str, found: Any, shape: Sequence[int], dtype: torch.dtype) -> Iterator[str]:
    if not isinstance(found, Tensor):
        yield f"{where} is {_format(found)} and no tensor"
    elif tuple(found.shape) != tuple(shape):
        yield f"{where} has the shape {list(found.shape)}, here it is {list(shape)}"
    elif found.dtype != dtype:
        yield f"{where} is of {found.dtype}, here it is {dtype}"
    elif found.layout != torch.strided:
        yield f"{where} is laid out as {found.layout}"
    elif not found.isfinite().all():
        yield f"{where} holds NaN or infinite values"
    elif where.endswith(_NEVER_BELOW_ZERO) and (found < 0).any():
        yield f"{where} holds values below zero"


def steps_of(found: Mapping[str, Any]) -> dict[int, int]:
    """How many steps each parameter of an optimizer's state has taken, by its place; 1 where that is not counted."""
    return {place: int(entries.get("step", 1)) for place, entries in found["state"].items()}


def places_of(network: nn.Module, optimizer: Optimizer) -> dict[str, int]:
    """The places of a network's parameters in an optimizer, by their names."""
    places = {id(p): place for place, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    return {name: places[id(parameter)] for name, parameter in network.named_parameters()}


def _is_number(value: Any) -> bool:
    return abs(value) < 2**63 if type(value) is int else type(value) is float and math.isfinite(value)


def _format_names(found: Mapping[Any, Any]) -> str:
    return _format(", ".join(map(str, found))) if found else "nothing"


def _format(value: Any) -> str:
    text = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
