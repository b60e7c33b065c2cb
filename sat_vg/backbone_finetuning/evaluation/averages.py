"""Predictions averaged over views of each image and over models, beside those of one model and one view."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sat_vg.backbone_finetuning.data.loading.loaders import Batch
from sat_vg.backbone_finetuning.evaluation.calibration import negative_log_likelihood
from sat_vg.backbone_finetuning.evaluation.costs import count_flops
from sat_vg.backbone_finetuning.evaluation.predictions import Predictions
from sat_vg.backbone_finetuning.evaluation.tasks import TASKS, predict
from sat_vg.backbone_finetuning.models.ensemble import Ensemble
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.models.probabilities import PROBABILITIES, TaskName
from sat_vg.backbone_finetuning.models.views import views_of
from sat_vg.backbone_finetuning.utils.precision import Precision

# Probabilities [N, num_classes], float64 → logits that stand for them; finite ones, even where one is 0 or 1.
_TINY, _NEARLY_ONE = torch.finfo(torch.float64).tiny, 1 - torch.finfo(torch.float64).eps / 2
LOGITS: dict[TaskName, Callable[[Tensor], Tensor]] = {
    "single_label": lambda shares: shares.clamp(min=_TINY).log(),
    "multi_label": lambda shares: shares.clamp(_TINY, _NEARLY_ONE).logit(),
}


def predict_views(
    model: FineTuneModel, batches: Iterable[Batch], precision: Precision, num_views: int
) -> tuple[Predictions, Tensor]:
    """Predictions for the images as they are, and float64 probabilities ``[N, num_classes]`` averaged over views."""
    averaged: list[Tensor] = []

    def forward(images: Tensor) -> Tensor:
        logits = [model(view).float() for view in views_of(images, num_views)]
        shares = [PROBABILITIES[model.task](each.cpu().double() / model.temperature) for each in logits]
        averaged.append(torch.stack(shares).mean(0))
        plain: Tensor = logits[0]
        return plain

    predictions = predict(model, batches, precision, forward)
    return predictions, torch.cat(averaged)


def averaged_predictions(plain: Predictions, shares: Sequence[Tensor]) -> Predictions:
    """The predictions of the mean of probabilities ``[N, num_classes]``, for the images and labels of ``plain``."""
    task = TASKS[plain.task]
    logits = LOGITS[plain.task](torch.stack([*shares]).mean(0)).float()
    num_classes, has_one = logits.shape[1], plain.labels.ndim == 1
    targets = functional.one_hot(plain.labels, num_classes) if has_one else plain.labels
    sums = task.sums(num_classes, logits.device)
    sums.add(logits, targets.float(), task.loss(logits, targets.float()))
    return replace(plain, logits=logits, losses=task.losses(logits, targets.float()), validation=sums.result())


def gain_and_cost(ensemble: Ensemble, names: Sequence[str], plain: Predictions) -> dict[str, Any]:
    """What was averaged, what it costs, and what the first model says of the images as they are."""
    first = ensemble.models[0]
    flops = [count_flops(model, model.preprocessing.image_size) for model in ensemble.models]
    numbers = plain.validation.numbers()
    alone = {"accuracy": plain.validation.accuracy, **({"map": numbers["val_map"]} if "val_map" in numbers else {})}
    return {
        "checkpoints": [*names],
        "views": ensemble.num_views,
        "passes": ensemble.passes,
        "gflops": ensemble.num_views * sum(flops) / 1e9,
        "alone": {
            **alone,
            "nll": negative_log_likelihood(plain.logits, plain.labels, first.temperature),
            "gflops": flops[0] / 1e9,
        },
    }
