"""What a classifier's logits mean: one class an image, or any number of them."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

TaskName = Literal["single_label", "multi_label"]

# Logits [B, num_classes], divided by the temperature → probabilities of the same shape.
PROBABILITIES: dict[TaskName, Callable[[Tensor], Tensor]] = {
    "single_label": lambda logits: logits.softmax(1),  # one class an image: rows sum to 1
    "multi_label": lambda logits: logits.sigmoid(),  # each class for itself
}
