"""A fine-tuning strategy as data: an ordered list of phases. The loop knows phases only."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Phase:
    """A stretch of training in which the same stages are trained.

    Attributes:
        name: for the log.
        epochs: passes over the training images.
        trainable_stages: stages that are trained besides the classifier, in order of depth.
        lr_scale: factor on the configured learning rate.
    """

    name: str
    epochs: int
    trainable_stages: tuple[str, ...]
    lr_scale: float = 1.0


def single_phase(epochs: int, trainable_stages: Sequence[str], all_stages: Sequence[str]) -> list[Phase]:
    """One phase that trains the same stages from the first epoch to the last."""
    if len(trainable_stages) == len(all_stages):
        name = "full"
    elif trainable_stages:
        name = "partial"
    else:
        name = "head"
    return [Phase(name, epochs, tuple(trainable_stages))]
