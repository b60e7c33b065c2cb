"""Metrics as sums on the device, divided once."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Validation:
    """What a pass over the validation images gave.

    Attributes:
        loss: mean cross-entropy.
        accuracy: share of images whose highest logit is their class.
        confusion: int64 ``[num_classes, num_classes]`` on the CPU; rows are true classes, columns predictions.
    """

    loss: float
    accuracy: float
    confusion: Tensor


class ValidationSums:
    """Adds up batches; nothing leaves the device before ``result``."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.num_classes = num_classes
        self.loss_sum = torch.zeros((), dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
        self.confusion = torch.zeros(num_classes * num_classes, dtype=torch.int64, device=device)

    def add(self, logits: Tensor, targets: Tensor, loss_sum: Tensor) -> None:
        """Add a batch: logits and targets ``[B, num_classes]`` and the batch's summed loss."""
        cells = targets.argmax(1) * self.num_classes + logits.argmax(1)
        self.confusion.scatter_add_(0, cells, torch.ones_like(cells))  # bincount would wait for the device
        self.loss_sum += loss_sum

    def result(self) -> Validation:
        """Divide the sums."""
        confusion = self.confusion.view(self.num_classes, self.num_classes).cpu()
        count = int(confusion.sum())
        return Validation(float(self.loss_sum) / count, int(confusion.trace()) / count, confusion)
