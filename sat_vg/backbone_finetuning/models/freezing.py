"""Which stages are trained. Frozen means: no gradient, no statistics, no dropout, also after calls of ``train()``."""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from sat_vg.backbone_finetuning.models.stages import Stage
from sat_vg.backbone_finetuning.utils.errors import ConfigError


def choose_trainable(
    stages: Sequence[Stage],
    freeze_early_layers: bool,
    unfreeze_layers: Iterable[str] | None,
    freeze_layers: int = 0,
) -> tuple[str, ...]:
    """The names of the trained stages, in order of depth.

    Args:
        stages: all stages of the backbone.
        freeze_early_layers: off: everything is trained.
        unfreeze_layers: the stages to train; unset: the deeper half (of 5 stages, the last 3).
        freeze_layers: freeze so many stages from the input on instead.

    Raises:
        ConfigError: a name is no stage of this backbone, or there are not so many; the message lists the right ones.
    """
    names = [stage.name for stage in stages]
    if isinstance(freeze_layers, bool) or not isinstance(freeze_layers, int) or not 0 <= freeze_layers <= len(names):
        raise ConfigError(
            f"freeze_layers = {freeze_layers!r}: must be 0 to {len(names)}; stages of this backbone: "
            f"{', '.join(names)}"
        )
    if freeze_layers and freeze_early_layers:
        raise ConfigError(
            f"freeze_layers = {freeze_layers} and freeze_early_layers = true both say what is frozen; leave one out"
        )
    if freeze_layers:
        return tuple(names[freeze_layers:])
    if not freeze_early_layers:
        return tuple(names)
    if unfreeze_layers is None:
        return tuple(names[len(names) // 2 :])
    wanted = list(unfreeze_layers)
    check_stage_names(wanted, names, "unfreeze_layers")
    return tuple(name for name in names if name in wanted)


def check_stage_names(wanted: Iterable[str], names: Sequence[str], field: str) -> None:
    """Refuse names that are no stages; the message has the wrong one, the nearest right one, and all right ones."""
    for name in wanted:
        if name not in names:
            near = difflib.get_close_matches(str(name), names, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ConfigError(f"{field} = {name!r}: no stage of this backbone; {hint}Stages: {', '.join(names)}")


def apply_trainable(network: nn.Module, stages: Sequence[Stage], trainable: Sequence[str]) -> list[nn.Module]:
    """Switch gradients on for the parameters of ``trainable`` stages and off for those of all others.

    Returns:
        The modules of the frozen stages, which must stay in eval mode.
    """
    frozen_modules: list[nn.Module] = []
    for stage in stages:
        is_trained = stage.name in trainable
        for _, parameter in stage.named_parameters(network):
            parameter.requires_grad_(is_trained)
            if not is_trained:
                parameter.grad = None  # a left-over gradient would let the optimizer move it once more
        if not is_trained:
            frozen_modules.extend(stage.modules(network))
    keep_in_eval(frozen_modules)
    return frozen_modules


def keep_in_eval(modules: Iterable[nn.Module]) -> None:
    """Put modules that have left eval mode back into it."""
    for module in modules:
        if module.training:
            module.training = False


@contextmanager
def in_eval_mode(module: nn.Module) -> Iterator[None]:
    """Put ``module`` into eval mode; afterwards each of its parts is in the mode that it was in before."""
    was_training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in was_training:
            part.training = True
