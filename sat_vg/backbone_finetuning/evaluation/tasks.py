"""What differs between one class an image and several of them; looked up once, by the name that the model carries."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional

from sat_vg.backbone_finetuning.configs.choices import Metric
from sat_vg.backbone_finetuning.evaluation.metrics import (
    MultiLabelSums,
    Sums,
    Validation,
    ValidationSums,
)
from sat_vg.backbone_finetuning.models.probabilities import PROBABILITIES, TaskName
from sat_vg.backbone_finetuning.reports.evaluation_figures import draw_class_scores
from sat_vg.backbone_finetuning.reports.figures import draw_confusion_matrix
from sat_vg.backbone_finetuning.utils.errors import ConfigError


@dataclass(frozen=True)
class Task:
    """What is asked of a classifier.

    Attributes:
        name: as it stands in best_model.pt.
        loss: of the validation: ``(logits, targets) ->`` sum over the batch.
        losses: the same of each image by itself, float32 ``[N]``.
        sums: ``(num_classes, device) ->`` what adds up a validation.
        metrics: what "best" may mean, its default first.
        labels: rows of targets ``[N, num_classes]`` → the labels: int64 ``[N]``, or bool ``[N, num_classes]``.
        given: logits ``[N, num_classes]`` → which classes the images are given, bool of the same shape: the likeliest
            one, or all with a probability of one half or more.
        draw: a validation and the names of the classes → the figure of the best epoch.
        figure: that figure's name.
    """

    name: TaskName
    loss: Callable[[Tensor, Tensor], Tensor]
    losses: Callable[[Tensor, Tensor], Tensor]
    sums: Callable[[int, torch.device], Sums]
    metrics: tuple[Metric, ...]
    labels: Callable[[Tensor], Tensor]
    given: Callable[[Tensor], Tensor]
    draw: Callable[[Validation, Sequence[str]], Figure]
    figure: str

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


def _draw_confusion(validation: Validation, class_names: Sequence[str]) -> Figure:
    assert validation.confusion is not None
    return draw_confusion_matrix(validation.confusion.numpy(), class_names)


def _likeliest(logits: Tensor) -> Tensor:
    return functional.one_hot(logits.argmax(1), logits.shape[1]).bool()


TASKS: dict[TaskName, Task] = {
    "single_label": Task(
        name="single_label",
        loss=lambda logits, targets: functional.cross_entropy(logits.float(), targets, reduction="sum"),
        losses=lambda logits, targets: functional.cross_entropy(logits, targets.argmax(1), reduction="none"),
        sums=ValidationSums,
        metrics=("val_accuracy", "val_loss", "val_macro_f1"),
        labels=lambda targets: targets.argmax(1),
        given=_likeliest,
        draw=_draw_confusion,
        figure="confusion_matrix",
    ),
    "multi_label": Task(
        name="multi_label",
        loss=lambda logits, targets: (
            functional.binary_cross_entropy_with_logits(logits.float(), targets, reduction="sum") / targets.shape[1]
        ),
        losses=lambda logits, targets: functional.binary_cross_entropy_with_logits(
            logits, targets.float(), reduction="none"
        ).mean(1),
        sums=MultiLabelSums,
        metrics=("val_map", "val_loss", "val_accuracy", "val_macro_f1"),
        labels=lambda targets: targets > 0.5,
        given=lambda logits: logits >= 0,
        draw=lambda validation, class_names: draw_class_scores(class_names, validation.rows()),
        figure="class_scores",
    ),
}


def task_of(is_multi_label: bool) -> Task:
    """The task of a data set."""
    return TASKS["multi_label" if is_multi_label else "single_label"]
