"""One pass over a split that keeps what the model says of every image."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from sat_vg.backbone_finetuning.data.loaders import Batch
from sat_vg.backbone_finetuning.engine.metrics import Validation, ValidationSums
from sat_vg.backbone_finetuning.engine.optim import soft_cross_entropy
from sat_vg.backbone_finetuning.engine.precision import Precision
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel


@dataclass(frozen=True)
class Predictions:
    """What a model says of each image of a split, in the split's order, on the CPU.

    Attributes:
        logits: float32 ``[N, num_classes]``.
        labels: int64 ``[N]``.
        losses: float32 ``[N]``, cross-entropy in nats.
        validation: loss, accuracy and confusion matrix, added up as the training adds them up.
    """

    logits: Tensor
    labels: Tensor
    losses: Tensor
    validation: Validation

    @property
    def predicted(self) -> Tensor:
        """The class with the highest logit, int64 ``[N]``."""
        return self.logits.argmax(1)

    def ranked(self, count: int) -> Tensor:
        """The ``count`` classes with the highest logits, int64 ``[N, count]``; equal ones in their order."""
        order: Tensor = self.logits.sort(dim=1, descending=True, stable=True).indices
        return order[:, :count]

    def probabilities(self, temperature: float = 1.0) -> Tensor:
        """Softmax of the logits divided by ``temperature``, float64 ``[N, num_classes]``."""
        return (self.logits.double() / temperature).softmax(1)


def predict(model: FineTuneModel, batches: Iterable[Batch], precision: Precision) -> Predictions:
    """Run the model over all batches, as the loop's validation does: the same numbers come out.

    Args:
        model: on its device; it is put into eval mode.
        batches: every image once, in order.
        precision: device and number formats.
    """
    model.eval()
    sums = ValidationSums(model.num_classes, precision.device)
    logits, labels = [], []
    with torch.inference_mode():
        for batch in tqdm(batches, desc="evaluation", unit="batch", leave=False, disable=None):
            batch = batch.to(precision.device)
            images = precision.place_images(model.preprocessing.normalise(batch.images))
            with precision.autocast():
                outputs = model(images).float()
            sums.add(outputs, batch.targets, soft_cross_entropy(outputs, batch.targets))
            logits.append(outputs)
            labels.append(batch.targets.argmax(1))
    # Outside of inference mode, whose tensors autograd refuses: a temperature is fitted to these.
    all_logits, all_labels = torch.cat(logits).cpu(), torch.cat(labels).cpu()
    losses = functional.cross_entropy(all_logits, all_labels, reduction="none")
    return Predictions(all_logits, all_labels, losses, sums.result())
