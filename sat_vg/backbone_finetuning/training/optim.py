"""Optimizer, its parameter groups by stage, and the learning rate as a function of the epoch."""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from sat_vg.backbone_finetuning.configs.choices import Optimizer as OptimizerName
from sat_vg.backbone_finetuning.configs.choices import Scheduler
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.models.networks.families.family import Family


@dataclass(frozen=True)
class Schedule:
    """The course of the learning rate within a phase.

    Attributes:
        kind: ``cosine`` (Loshchilov & Hutter, 2017, without restarts), ``step`` or ``plateau``.
        learning_rate: after the warm-up.
        warmup_epochs: epochs of linear rise from 0.
        step_size: step: epochs between reductions; plateau: epochs without improvement before one.
        gamma: factor of a reduction.
        min_lr: lower bound after the warm-up, for every stage and phase.
    """

    kind: Scheduler
    learning_rate: float
    warmup_epochs: float
    step_size: int
    gamma: float
    min_lr: float

    def at(self, epoch: float, num_epochs: int, plateau_factor: float = 1.0) -> float:
        """The learning rate at a point of a phase.

        Args:
            epoch: epochs since the phase began, with fractions.
            num_epochs: length of the phase.
            plateau_factor: product of the reductions so far; the one thing that depends on the past.
        """
        warmup = self._warmup(num_epochs)
        if epoch < warmup:
            return self.learning_rate * epoch / warmup
        return SCHEDULERS[self.kind](self, epoch, num_epochs, plateau_factor)

    def lowest(self, epoch: float, num_epochs: int) -> float:
        """What no factor of a phase, stage or head may bring the learning rate below at a point of a phase."""
        return 0.0 if epoch < self._warmup(num_epochs) else self.min_lr

    def _warmup(self, num_epochs: int) -> float:
        return min(self.warmup_epochs, num_epochs / 2)  # a phase of one epoch shall not end in its warm-up

    def _cosine(self, epoch: float, num_epochs: int, plateau_factor: float) -> float:
        warmup = self._warmup(num_epochs)
        share = (epoch - warmup) / max(num_epochs - warmup, 1e-9)
        return self.min_lr + (self.learning_rate - self.min_lr) * (1 + math.cos(math.pi * min(share, 1))) / 2

    def _step(self, epoch: float, num_epochs: int, plateau_factor: float) -> float:
        return max(self.min_lr, self.learning_rate * self.gamma ** math.floor(epoch / self.step_size))

    def _plateau(self, epoch: float, num_epochs: int, plateau_factor: float) -> float:
        return max(self.min_lr, self.learning_rate * plateau_factor)


# The learning rate after the warm-up: (schedule, epoch, length of the phase, plateau factor) → rate.
SCHEDULERS: dict[Scheduler, Callable[[Schedule, float, int, float], float]] = {
    "cosine": Schedule._cosine,
    "step": Schedule._step,
    "plateau": Schedule._plateau,
}


def build_optimizer(
    model: FineTuneModel,
    name: OptimizerName,
    weight_decay: float,
    momentum: float,
    layer_decay: float = 1.0,
    head_lr_scale: float = 1.0,
) -> Optimizer:
    """An optimizer over all parameters, in groups by stage; for the last two arguments see ``parameter_groups``.

    It holds frozen parameters too: they have no gradient, so no optimizer touches them, and what is frozen can
    change from phase to phase without losing the state of what stays trained.
    """
    return OPTIMIZERS[name](parameter_groups(model, weight_decay, layer_decay, head_lr_scale), momentum)


def _adamw(groups: list[dict[str, Any]], momentum: float) -> Optimizer:
    # The fused kernel updates all parameters in one pass over memory.
    return torch.optim.AdamW(groups, lr=0.0, fused=groups[0]["params"][0].device.type in ("cpu", "cuda"))


def _adam(groups: list[dict[str, Any]], momentum: float) -> Optimizer:
    return torch.optim.Adam(groups, lr=0.0, fused=groups[0]["params"][0].device.type in ("cpu", "cuda"))


def _sgd(groups: list[dict[str, Any]], momentum: float) -> Optimizer:
    # Not fused: where loss scaling skips the very first step, torch's fused SGD leaves its momentum buffers allocated
    # but unfilled, and the next step takes them for momentum.
    return torch.optim.SGD(groups, lr=0.0, momentum=momentum, nesterov=momentum > 0)


OPTIMIZERS: dict[OptimizerName, Callable[[list[dict[str, Any]], float], Optimizer]] = {
    "adamw": _adamw,
    "adam": _adam,
    "sgd": _sgd,
}


def parameter_groups(
    model: FineTuneModel, weight_decay: float, layer_decay: float = 1.0, head_lr_scale: float = 1.0
) -> list[dict[str, Any]]:
    """Two groups a stage and two for the classifier: with and without weight decay.

    Each has ``params``, ``name``, ``weight_decay`` and ``lr_scale``, the factor on the run's learning rate.

    Args:
        model: whose parameters they are.
        weight_decay: of the weights that decay.
        layer_decay: factor on the learning rate from each stage to the one before it (Clark et al., 2020); the last
            stage has the run's own.
        head_lr_scale: factor on the classifier's learning rate.
    """
    depth_from_end = {stage.name: depth for depth, stage in enumerate(reversed(model.stages))}
    return [
        {
            "params": parameters,
            "name": f"{stage}{'' if decays else '/no_decay'}",
            "weight_decay": weight_decay if decays else 0.0,
            "lr_scale": layer_decay ** depth_from_end[stage] if stage in depth_from_end else head_lr_scale,
        }
        for stage, decays, parameters in _divided(model, spared_from_decay(model.network, model.row.family))
    ]


def _divided(model: FineTuneModel, spared: Collection[str]) -> list[tuple[str, bool, list[nn.Parameter]]]:
    """``(stage or head, whether they decay, parameters)`` of every group that has any, in order."""
    named = {stage.name: dict(stage.named_parameters(model.network)) for stage in model.stages}
    of_network = dict(model.network.named_parameters())
    named["head"] = {name: of_network[name] for name in model.head_parameter_names}
    covered = sum(len(parameters) for parameters in named.values())
    assert covered == len(of_network), "every parameter belongs to exactly one stage or the head"
    groups = [
        (stage, decays, [p for name, p in parameters.items() if (name not in spared) is decays])
        for stage, parameters in named.items()
        for decays in (True, False)
    ]
    return [group for group in groups if group[2]]


def in_groups_of_today(state: dict[str, Any], model: FineTuneModel, optimizer: Optimizer) -> dict[str, Any]:
    """An optimizer's state as saved; where an earlier version saved it, with its parameters in today's groups.

    Earlier versions let position tables, scales and timm's tokens decay, so these lay in other groups; torch knows
    parameters by their places in the groups.
    """
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    vectors = (name for name, p in model.network.named_parameters() if p.ndim <= 1 or name.endswith("class_token"))
    earlier = _divided(model, {*vectors, model.row.family.position_embedding or ""})
    saved = [len(group["params"]) for group in state["param_groups"]]
    if saved == sizes or saved != [len(parameters) for _, _, parameters in earlier]:
        return state
    today = optimizer.state_dict()["param_groups"]
    places = {id(p): place for place, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    moved = dict(enumerate(places[id(p)] for _, _, parameters in earlier for p in parameters))
    return {"state": {moved[place]: entry for place, entry in state["state"].items()}, "param_groups": today}


def spared_from_decay(network: nn.Module, family: Family) -> frozenset[str]:
    """Names of the parameters that are not pulled towards zero: norms, biases, and what the family says."""
    vectors = (name for name, p in network.named_parameters() if p.ndim <= 1 or name.endswith("bias"))
    return frozenset([*vectors, *family.no_weight_decay(network)])


def set_learning_rate(optimizer: Optimizer, learning_rate: float, lowest: float = 0.0) -> None:
    """Give every group the learning rate times its own ``lr_scale``, or ``lowest`` where that would be less."""
    for group in optimizer.param_groups:
        group["lr"] = max(lowest, learning_rate * group["lr_scale"])
