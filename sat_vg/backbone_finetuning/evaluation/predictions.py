"""One pass over a split that keeps what the model says of every image."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from sat_vg.backbone_finetuning.data.loading.loaders import Batch
from sat_vg.backbone_finetuning.evaluation.metrics import Validation
from sat_vg.backbone_finetuning.evaluation.tasks import TASKS
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.models.probabilities import TaskName
from sat_vg.backbone_finetuning.utils.precision import Precision
from sat_vg.backbone_finetuning.utils.terminal import progress


@dataclass(frozen=True)
class Predictions:
    """What a model says of each image of a split, in the split's order, on the CPU.

    Attributes:
        logits: float32 ``[N, num_classes]``.
        labels: int64 ``[N]``; bool ``[N, num_classes]`` where an image can have several classes.
        losses: float32 ``[N]``, (binary) cross-entropy in nats.
        validation: loss, accuracy and scores by class, added up as the training adds them up.
        task: which of the two the labels are.
    """

    logits: Tensor
    labels: Tensor
    losses: Tensor
    validation: Validation
    task: TaskName = "single_label"

    @property
    def given(self) -> Tensor:
        """The classes that each image is given, bool ``[N, num_classes]``."""
        return TASKS[self.task].given(self.logits)

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
        return TASKS[self.task].probabilities(self.logits.double(), temperature)


def predict(model: FineTuneModel, batches: Iterable[Batch], precision: Precision) -> Predictions:
    """Run the model over all batches, as the loop's validation does: the same numbers come out.

    Args:
        model: on its device; it is put into eval mode.
        batches: every image once, in order.
        precision: device and number formats.
    """
    model.eval()
    task = TASKS[model.task]
    sums = task.sums(model.num_classes, precision.device)
    logits, targets = [], []
    with torch.inference_mode():
        for batch in progress(batches, desc="evaluation", unit="batch"):
            batch = batch.to(precision.device)
            images = precision.place_images(model.preprocessing.normalise(batch.images))
            with precision.autocast():
                outputs = model(images).float()
            sums.add(outputs, batch.targets, task.loss(outputs, batch.targets))
            logits.append(outputs)
            targets.append(batch.targets)
    # Outside of inference mode, whose tensors autograd refuses: a temperature is fitted to these.
    all_logits, all_targets = torch.cat(logits).cpu(), torch.cat(targets).cpu()
    losses = task.losses(all_logits, all_targets)
    return Predictions(all_logits, task.labels(all_targets), losses, sums.result(), task.name)
