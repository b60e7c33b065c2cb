"""A fine-tuning strategy as data: an ordered list of phases. The loop knows phases only.

A new strategy is one function here that returns phases, its line in ``STRATEGIES``, and its name in
``configs/choices.py``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from sat_vg.backbone_finetuning.configs.choices import Strategy
from sat_vg.backbone_finetuning.utils.errors import ConfigError


@dataclass(frozen=True)
class Phase:
    """A stretch of training in which the same stages are trained.

    Attributes:
        name: for the log.
        epochs: passes over the training images.
        trainable_stages: stages that are trained besides the classifier, in order of depth.
        lr_scale: factor on the configured learning rate.
        method: ``gradient``; or of its one epoch ``exact_head``: solve for the best classifier on frozen features;
            ``mix``: choose among the weights between start and end of the phase before.
        keeps_statistics: batch norm computes with its running statistics, which stay, and not with each batch's.
        wins_ties: its weights are the best ones already where metric and loss equal the best ones before.
    """

    name: str
    epochs: int
    trainable_stages: tuple[str, ...]
    lr_scale: float = 1.0
    method: Literal["gradient", "exact_head", "mix"] = "gradient"
    keeps_statistics: bool = False
    wins_ties: bool = False

    @property
    def verb(self) -> str:
        """What is done to its stages and the classifier, in one word."""
        return {"gradient": "trained", "exact_head": "solved for", "mix": "mixed"}[self.method]

    @property
    def details(self) -> str:
        """What is unlike other phases, to be said after what is trained; empty where nothing is."""
        rate = "" if self.lr_scale == 1 else f" at {self.lr_scale:g} of the learning rate"
        return rate + (", batch norm keeps its statistics" if self.keeps_statistics else "")


@dataclass(frozen=True)
class PhasePlan:
    """What a strategy is told.

    Attributes:
        stages: of the backbone, in order of depth.
        num_epochs: of the whole run.
        last_layers: stages that ``last_layers`` trains.
        phase_epochs: epochs of each phase; unset: the strategy divides ``num_epochs``.
        probe_is_exact: linear probes are solved for and not trained.
        is_pretrained: whether the backbone starts from weights that mean something.
    """

    stages: tuple[str, ...]
    num_epochs: int
    last_layers: int = 1
    phase_epochs: tuple[int, ...] | None = None
    probe_is_exact: bool = False
    is_pretrained: bool = True

    def epochs(self, shares: Sequence[float]) -> list[int]:
        """The epochs of each phase, as given, or ``num_epochs`` divided by ``shares``, each at least one.

        Raises:
            ConfigError: there are not as many phases as ``phase_epochs`` says, or fewer epochs than phases.
        """
        if self.phase_epochs is not None:
            if len(self.phase_epochs) != len(shares):
                raise ConfigError(
                    f"phase_epochs = {list(self.phase_epochs)}: this strategy has {len(shares)} phases on this "
                    f"backbone; give {len(shares)} numbers, or leave it out"
                )
            return list(self.phase_epochs)
        if self.num_epochs < len(shares):
            raise ConfigError(
                f"num_epochs = {self.num_epochs}: this strategy has {len(shares)} phases of at least one epoch each"
            )
        return divide(self.num_epochs, shares)


_AFTER_A_PROBE = 0.3  # of the learning rate: measured, see docs/adr/0013
EXACT_PROBE = Phase("linear_probe", 1, (), method="exact_head")


def divide(total: int, shares: Sequence[float]) -> list[int]:
    """``total`` divided by ``shares``: whole numbers of at least 1 that add up to it."""
    count, bounds = len(shares), [0]
    for index in range(1, count + 1):
        wanted = round(total * sum(shares[:index]) / sum(shares))
        bounds.append(min(max(wanted, bounds[-1] + 1), total - (count - index)))
    return [bound - before for before, bound in pairwise(bounds)]


def single_phase(epochs: int, trainable_stages: Sequence[str], all_stages: Sequence[str]) -> list[Phase]:
    """One phase that trains the same stages from the first epoch to the last."""
    if len(trainable_stages) == len(all_stages):
        name = "full"
    elif trainable_stages:
        name = "partial"
    else:
        name = "head"
    return [Phase(name, epochs, tuple(trainable_stages))]


def full(plan: PhasePlan) -> list[Phase]:
    """Everything is trained from the first epoch on."""
    return [Phase("full", plan.epochs([1])[0], plan.stages)]


def linear_probe(plan: PhasePlan) -> list[Phase]:
    """The classifier alone is trained, on features that do not change; or solved for, which takes one epoch."""
    return [EXACT_PROBE if plan.probe_is_exact else Phase("linear_probe", plan.epochs([1])[0], ())]


def last_layers(plan: PhasePlan) -> list[Phase]:
    """The last ``last_layers`` stages and the classifier are trained.

    Raises:
        ConfigError: the backbone has fewer stages.
    """
    if plan.last_layers > len(plan.stages):
        raise ConfigError(
            f"last_layers = {plan.last_layers}: this backbone has {len(plan.stages)} stages: {', '.join(plan.stages)}"
        )
    return [Phase("last_layers", plan.epochs([1])[0], plan.stages[-plan.last_layers :])]


def progressive(plan: PhasePlan) -> list[Phase]:
    """The classifier first, then one more stage from the end in each phase (Howard & Ruder, 2018).

    Where there are fewer epochs than stages, a phase takes in several.
    """
    most = len(plan.stages) + 1
    count = min(plan.num_epochs, most) if plan.phase_epochs is None else len(plan.phase_epochs)
    if not 2 <= count <= most:
        raise ConfigError(
            f"strategy = 'progressive': {count} phases do not fit this backbone; it needs 2 to "
            f"{most} (its stages are {', '.join(plan.stages)}), and as many epochs at least"
        )
    epochs = plan.epochs([1] * count)
    taken_in = [round(len(plan.stages) * index / (count - 1)) for index in range(count)]
    return [
        Phase(f"last_{number}" if number else "head", length, plan.stages[len(plan.stages) - number :])
        for number, length in zip(taken_in, epochs, strict=True)
    ]


def lp_ft(plan: PhasePlan) -> list[Phase]:
    """A linear probe, then full fine-tuning from it (Kumar et al., 2022).

    A probe that is trained gets a fifth of the epochs, one that is solved for gets one. The head fits features made
    with the pre-training's statistics; with those of batches batch norm would make others, and the head would be lost
    before the backbone had learnt anything; a large learning rate would do the same. Random weights have nothing to
    be kept.
    """
    if plan.probe_is_exact:
        phases = [EXACT_PROBE, Phase("full", plan.num_epochs, plan.stages)]
    else:
        probe, rest = plan.epochs([1, 4])
        phases = [Phase("linear_probe", probe, ()), Phase("full", rest, plan.stages)]
    if plan.is_pretrained:
        phases[1] = replace(phases[1], lr_scale=_AFTER_A_PROBE, keeps_statistics=True)
    return phases


def then_mixed(phases: Sequence[Phase]) -> list[Phase]:
    """The same phases, and then a mixture of the last one's first and last weights (Wortsman et al., 2022)."""
    return [*phases, Phase("wise_ft", 1, phases[-1].trainable_stages, method="mix", wins_ties=True)]


STRATEGIES: dict[Strategy, Callable[[PhasePlan], list[Phase]]] = {
    "full": full,
    "linear_probe": linear_probe,
    "last_layers": last_layers,
    "progressive": progressive,
    "lp_ft": lp_ft,
}
