"""Fine-tuning strategies as data: ordered lists of phases, which are all that the loop knows.

A new strategy is one function here that returns phases, its line in ``STRATEGIES``, and its name in
``configs/choices.py``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, Protocol

from sat_vg.backbone_finetuning.configs.choices import Strategy
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.printable import counted

Method = Literal["gradient", "exact_head", "mix"]


class Stages(Protocol):
    """A model whose stages can be frozen."""

    def set_trainable(self, stages: Sequence[str], keeps_statistics: bool = False) -> None:
        """Train these stages and the classifier; freeze all other stages."""

    def parameter_counts(self, trained_only: bool = False) -> dict[str, int]:
        """Number of parameters by stage, all or those that have gradients."""


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
    method: Method = "gradient"
    keeps_statistics: bool = False
    wins_ties: bool = False

    def apply_to(self, model: Stages) -> None:
        """Set what a model trains in this phase."""
        model.set_trainable(self.trainable_stages, self.keeps_statistics)

    def trained_parameters(self, model: Stages) -> dict[str, int]:
        """Number of parameters by stage that have gradients in this phase, to which the model is then set."""
        self.apply_to(model)
        return model.parameter_counts(trained_only=True)

    @property
    def verb(self) -> str:
        """Passive verb of what happens to its stages and the classifier."""
        return {"gradient": "trained", "exact_head": "solved for", "mix": "mixed"}[self.method]

    @property
    def details(self) -> str:
        """Settings that differ from other phases', as the end of a sentence; may be empty."""
        rate = "" if self.lr_scale == 1 else f" at {self.lr_scale:g} of the learning rate"
        return rate + (", batch norm keeps its statistics" if self.keeps_statistics else "")

    @property
    def description(self) -> str:
        """Name, length and what is trained."""
        epochs = f"{self.name}, {counted(self.epochs, 'epoch')}, "
        if self.method == "exact_head":
            return epochs + "the head solved for"
        if self.method == "mix":
            return epochs + "mixes the first and the last weights of the phase before"
        return f"{epochs}trains {', '.join((*self.trainable_stages, 'head'))}{self.details}"


@dataclass(frozen=True)
class StrategyInputs:
    """Inputs of a strategy.

    Attributes:
        stages: of the backbone, in order of depth.
        num_epochs: of the whole run.
        last_layers: stages that ``last_layers`` trains.
        phase_epochs: epochs of each phase; unset: the strategy divides ``num_epochs``.
        probe_is_exact: linear probes are solved for and not trained.
        is_pretrained: whether the backbone starts from weights that mean something.
        phase_stages: names of the stages that each phase of ``progressive`` adds, ``head`` and ``all`` among them;
            unset: one more from the end in each.
    """

    stages: tuple[str, ...]
    num_epochs: int
    last_layers: int = 1
    phase_epochs: tuple[int, ...] | None = None
    probe_is_exact: bool = False
    is_pretrained: bool = True
    phase_stages: tuple[tuple[str, ...], ...] | None = None

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


PhasePlan = StrategyInputs  # its earlier name, for one more version
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


def full(inputs: StrategyInputs) -> list[Phase]:
    """Everything is trained from the first epoch on."""
    return [Phase("full", inputs.epochs([1])[0], inputs.stages)]


def linear_probe(inputs: StrategyInputs) -> list[Phase]:
    """The classifier alone is trained, on features that do not change; or solved for, which takes one epoch."""
    return [EXACT_PROBE if inputs.probe_is_exact else Phase("linear_probe", inputs.epochs([1])[0], ())]


def last_layers(inputs: StrategyInputs) -> list[Phase]:
    """The last ``last_layers`` stages and the classifier are trained.

    Raises:
        ConfigError: the backbone has fewer stages.
    """
    if inputs.last_layers > len(inputs.stages):
        raise ConfigError(
            f"last_layers = {inputs.last_layers}: this backbone has {len(inputs.stages)} stages: "
            + ", ".join(inputs.stages)
        )
    return [Phase("last_layers", inputs.epochs([1])[0], inputs.stages[-inputs.last_layers :])]


def progressive(inputs: StrategyInputs) -> list[Phase]:
    """The classifier first, then one more stage from the end in each phase (Howard & Ruder, 2018).

    Where there are fewer epochs than stages, a phase takes in several.
    """
    if inputs.phase_stages is not None:
        return _by_named_stages(inputs, inputs.phase_stages)
    most = len(inputs.stages) + 1
    count = min(inputs.num_epochs, most) if inputs.phase_epochs is None else len(inputs.phase_epochs)
    if not 2 <= count <= most:
        raise ConfigError(
            f"strategy = 'progressive': {count} phases do not fit this backbone; it needs 2 to "
            f"{most} (its stages are {', '.join(inputs.stages)}), and as many epochs at least"
        )
    epochs = inputs.epochs([1] * count)
    taken_in = [round(len(inputs.stages) * index / (count - 1)) for index in range(count)]
    return [
        Phase(f"last_{number}" if number else "head", length, inputs.stages[len(inputs.stages) - number :])
        for number, length in zip(taken_in, epochs, strict=True)
    ]


def _by_named_stages(inputs: StrategyInputs, added: Sequence[Sequence[str]]) -> list[Phase]:
    """A phase for each entry; each trains the stages of its entry and of those before it.

    Raises:
        ConfigError: a name is no stage of this backbone, or a phase adds nothing.
    """
    trained, phases = set[str](), list[Phase]()
    for names, length in zip(added, inputs.epochs([1] * len(added)), strict=True):
        unknown = [name for name in names if name not in (*inputs.stages, "head", "all")]
        if unknown:
            raise ConfigError(
                f"phase_stages: {unknown[0]!r} is no stage of this backbone; it has head, "
                f"{', '.join(inputs.stages)}, and all stands for every one"
            )
        more = trained | (set(inputs.stages) if "all" in names else {*names} - {"head"})
        if phases and more == trained:
            raise ConfigError(
                f"phase_stages: {', '.join(names)!r} adds nothing to the phases before it; leave it out"
            )
        trained = more
        stages = tuple(name for name in inputs.stages if name in trained)
        phases.append(Phase("full" if stages == inputs.stages else "+".join(names), length, stages))
    return phases


def lp_ft(inputs: StrategyInputs) -> list[Phase]:
    """A linear probe, then full fine-tuning from it (Kumar et al., 2022).

    A probe that is trained gets a fifth of the epochs, one that is solved for gets one. The head fits features made
    with the pre-training's statistics; with those of batches batch norm would make others, and the head would be lost
    before the backbone had learnt anything; a large learning rate would do the same. Random weights have nothing to
    be kept.
    """
    if inputs.probe_is_exact:
        phases = [EXACT_PROBE, Phase("full", inputs.num_epochs, inputs.stages)]
    else:
        probe, rest = inputs.epochs([1, 4])
        phases = [Phase("linear_probe", probe, ()), Phase("full", rest, inputs.stages)]
    if inputs.is_pretrained:
        phases[1] = replace(phases[1], lr_scale=_AFTER_A_PROBE, keeps_statistics=True)
    return phases


def then_mixed(phases: Sequence[Phase]) -> list[Phase]:
    """The same phases, and then a mixture of the last one's first and last weights (Wortsman et al., 2022)."""
    return [*phases, Phase("wise_ft", 1, phases[-1].trainable_stages, method="mix", wins_ties=True)]


def total_epochs(strategy: Strategy | None, num_epochs: int, probe_is_exact: bool, wise_ft: bool) -> int:
    """The epochs of all phases together: a probe that is solved for, and a mixture of weights, take one each."""
    trained = 0 if strategy == "linear_probe" and probe_is_exact else num_epochs
    return trained + (probe_is_exact and strategy in ("linear_probe", "lp_ft")) + wise_ft


STRATEGIES: dict[Strategy, Callable[[StrategyInputs], list[Phase]]] = {
    "full": full,
    "linear_probe": linear_probe,
    "last_layers": last_layers,
    "progressive": progressive,
    "lp_ft": lp_ft,
}
