"""What a model says of every image of a split."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional

from sat_vg.backbone_finetuning.evaluation.metrics import Validation
from sat_vg.backbone_finetuning.models.probabilities import PROBABILITIES, TaskName
from sat_vg.backbone_finetuning.utils.printable import one_line

# Logits [N, num_classes] → the classes that images are given, bool of the same shape: the likeliest one, or all whose
# probability is one half or more.
GIVEN: dict[TaskName, Callable[[Tensor], Tensor]] = {
    "single_label": lambda logits: functional.one_hot(logits.argmax(1), logits.shape[1]).bool(),
    "multi_label": lambda logits: logits >= 0,
}


@dataclass(frozen=True)
class Predictions:
    """What a model says of each image of a split, in the split's order, on the CPU."""

    logits: Tensor  # float32 ``[N, num_classes]``
    labels: Tensor  # int64 ``[N]``; bool ``[N, num_classes]`` where an image can have several classes
    losses: Tensor  # float32 ``[N]``, (binary) cross-entropy in nats
    validation: Validation  # loss, accuracy and scores by class, added up as the training adds them up
    task: TaskName = "single_label"  # which of the two the labels are

    @property
    def given(self) -> Tensor:
        """The classes that each image is given, bool ``[N, num_classes]``."""
        return GIVEN[self.task](self.logits)

    @property
    def predicted(self) -> Tensor:
        """The class with the highest logit, int64 ``[N]``."""
        return self.logits.argmax(1)

    def ranked(self, count: int) -> Tensor:
        """The ``count`` classes with the highest logits, int64 ``[N, count]``; equal ones in their order."""
        order: Tensor = self.logits.sort(dim=1, descending=True, stable=True).indices
        return order[:, :count]

    def probabilities(self, temperature: float = 1.0) -> Tensor:
        """Of the logits divided by ``temperature``, float64 ``[N, num_classes]``."""
        return PROBABILITIES[self.task](self.logits.double() / temperature)


@dataclass(frozen=True)
class Mistake:
    """An image that is shown as a mistake."""

    place: int  # in the split
    explained: int  # index of the class whose heat is shown
    entry: dict[str, Any]  # of evaluation.json


def names_of_set(row: Tensor, class_names: Sequence[str]) -> str:
    """The names of the classes that are set in ``row`` (bool ``[num_classes]``), with commas between."""
    return ", ".join(one_line(class_names[index]) for index in row.nonzero()[:, 0].tolist()) or "(none)"
