"""All that differs between one class per image and several, by the task's name in the model."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from sat_vg.backbone_finetuning.configs.choices import Metric
from sat_vg.backbone_finetuning.data.loading.loaders import Batch
from sat_vg.backbone_finetuning.evaluation import multi_label, single_label
from sat_vg.backbone_finetuning.evaluation.metrics import MultiLabelSums, Sums, Validation, ValidationSums
from sat_vg.backbone_finetuning.evaluation.predictions import GIVEN, Mistake, Predictions
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.models.probabilities import PROBABILITIES, TaskName
from sat_vg.backbone_finetuning.reports.prediction_table import Prediction, SetPrediction
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.precision import Precision
from sat_vg.backbone_finetuning.utils.terminal import progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Task:
    """Kind of classification.

    Attributes:
        name: as it stands in best_model.pt.
        metrics: what "best" may mean, its default first.
        loss: of the validation: ``(logits, targets) ->`` sum over the batch.
        losses: the same of each image by itself, float32 ``[N]``.
        sums: ``(num_classes, device) ->`` what adds up a validation.
        labels: rows of targets ``[N, num_classes]`` → the labels: int64 ``[N]``, or bool ``[N, num_classes]``.
        draw: a validation and the names of the classes → the picture of the best epoch.
        figure: that figure's name.
        assess: ``(predictions, class names, temperature) ->`` all numbers of an evaluation, by name.
        per_image: ``(predictions, paths, temperature) ->`` the lines of predictions.csv.
        mistakes: ``(predictions, lines, class names, temperature) ->`` the worst ones.
        severity: ``(probabilities, losses) ->`` ``[N]``, by which the worst mistakes are chosen for a picture.
        mistake_title: ``(targets, given, probabilities, class names) ->`` title of an image in it.
        mistakes_heading: of that picture, with a place for how many there are.
    """

    name: TaskName
    metrics: tuple[Metric, ...]
    loss: Callable[[Tensor, Tensor], Tensor]
    losses: Callable[[Tensor, Tensor], Tensor]
    sums: Callable[[int, torch.device], Sums]
    labels: Callable[[Tensor], Tensor]
    draw: Callable[[Validation, Sequence[str]], "Figure | Image.Image"]
    figure: str
    assess: Callable[[Predictions, Sequence[str], float], dict[str, Any]]
    per_image: Callable[[Predictions, Sequence[str], float], Sequence[Prediction | SetPrediction]]
    mistakes: Callable[[Predictions, Sequence[Any], Sequence[str], float], list[Mistake]]
    severity: Callable[[Tensor, Tensor], Tensor]
    mistake_title: Callable[[Tensor, Tensor, Tensor, Sequence[str]], str]
    mistakes_heading: str

    def given(self, logits: Tensor) -> Tensor:
        """Logits ``[N, num_classes]`` → which classes the images are given, bool of the same shape."""
        return GIVEN[self.name](logits)

    def metric(self, wanted: Metric | None) -> Metric:
        """What "best" means: as configured, or what fits these images.

        Raises:
            ConfigError: the metric says nothing of them.
        """
        if wanted is None:
            return self.metrics[0]
        if wanted not in self.metrics:
            raise ConfigError(
                f"early_stopping_metric = {wanted!r}: is for images that can have several classes, and these have "
                f"one each; use {', '.join(self.metrics[:-1])} or {self.metrics[-1]}, or leave it out"
            )
        return wanted

    def probabilities(self, logits: Tensor, temperature: float = 1.0) -> Tensor:
        """Logits ``[N, num_classes]`` → probabilities of the same shape and type."""
        return PROBABILITIES[self.name](logits / temperature)


TASKS: dict[TaskName, Task] = {
    "single_label": Task(
        name="single_label",
        metrics=("val_accuracy", "val_loss", "val_macro_f1"),
        loss=single_label.loss,
        losses=single_label.losses,
        sums=ValidationSums,
        labels=lambda targets: targets.argmax(1),
        draw=single_label.draw,
        figure="confusion_matrix",
        assess=single_label.assess,
        per_image=single_label.per_image,
        mistakes=single_label.mistakes,
        severity=lambda probabilities, losses: probabilities.amax(1),
        mistake_title=single_label.mistake_title,
        mistakes_heading=single_label.MISTAKES_HEADING,
    ),
    "multi_label": Task(
        name="multi_label",
        metrics=("val_map", "val_loss", "val_accuracy", "val_macro_f1"),
        loss=multi_label.loss,
        losses=multi_label.losses,
        sums=MultiLabelSums,
        labels=lambda targets: targets > 0.5,
        draw=multi_label.draw,
        figure="class_scores",
        assess=multi_label.assess,
        per_image=multi_label.per_image,
        mistakes=multi_label.mistakes,
        severity=lambda probabilities, losses: losses,
        mistake_title=multi_label.mistake_title,
        mistakes_heading=multi_label.MISTAKES_HEADING,
    ),
}


def task_of(is_multi_label: bool) -> Task:
    """The task of a data set."""
    return TASKS["multi_label" if is_multi_label else "single_label"]


def predict(
    model: FineTuneModel,
    batches: Iterable[Batch],
    precision: Precision,
    forward: Callable[[Tensor], Tensor] | None = None,
) -> Predictions:
    """Run the model over all batches, as the loop's validation does: the same numbers come out.

    Args:
        model: on its device; it is put into eval mode.
        batches: every image once, in order.
        precision: device and number formats.
        forward: normalised images → logits; unset: the model's own.
    """
    model.eval()
    forward = forward or model
    task = TASKS[model.task]
    sums = task.sums(model.num_classes, precision.device)
    logits, targets = [], []
    with torch.inference_mode():
        for batch in progress(batches, desc="evaluation", unit="batch"):
            batch = batch.to(precision.device)
            images = precision.place_images(model.preprocessing.normalise(batch.images))
            with precision.autocast():
                outputs = forward(images).float()
            sums.add(outputs, batch.targets, task.loss(outputs, batch.targets))
            logits.append(outputs)
            targets.append(batch.targets)
    # Outside of inference mode, whose tensors autograd refuses: a temperature is fitted to these.
    all_logits, all_targets = torch.cat(logits).cpu(), torch.cat(targets).cpu()
    losses = task.losses(all_logits, all_targets)
    return Predictions(all_logits, task.labels(all_targets), losses, sums.result(), task.name)
