"""All that differs between one class an image and several, by the task's name in the model."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from sat_vg.backbone_finetuning.configs.choices import Metric
from sat_vg.backbone_finetuning.data.loading.loaders import Batch
from sat_vg.backbone_finetuning.evaluation.bootstrap import (
    LEVEL,
    RESAMPLES,
    bootstrap_intervals,
    bootstrap_intervals_of_sets,
)
from sat_vg.backbone_finetuning.evaluation.calibration import (
    expected_calibration_error,
    negative_log_likelihood,
    reliability,
)
from sat_vg.backbone_finetuning.evaluation.metrics import (
    SCORES,
    MultiLabelSums,
    Validation,
    ValidationSums,
    averages,
    mean_of_known,
    share_of_true_class,
)
from sat_vg.backbone_finetuning.evaluation.mistakes import most_confident_mistakes
from sat_vg.backbone_finetuning.evaluation.predictions import GIVEN, Mistake, Predictions, names_of_set
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.models.probabilities import PROBABILITIES, TaskName
from sat_vg.backbone_finetuning.reports.prediction_table import Prediction, SetPrediction
from sat_vg.backbone_finetuning.reports.record_pictures import draw_confusion
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.precision import Precision
from sat_vg.backbone_finetuning.utils.printable import one_line
from sat_vg.backbone_finetuning.utils.terminal import progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MISTAKES_SHOWN = 12
_TOP = 5
_WRONG_CLASSES = 3  # named over an image


class _Task:
    """What both tasks do by their name."""

    name: TaskName
    metrics: tuple[Metric, ...]  # what "best" may mean, its default first

    def given(self, logits: Tensor) -> Tensor:
        """Logits ``[N, num_classes]`` → which classes the images are given, bool of the same shape."""
        return GIVEN[self.name](logits)

    def probabilities(self, logits: Tensor, temperature: float = 1.0) -> Tensor:
        """Logits ``[N, num_classes]`` → probabilities of the same shape and type."""
        return PROBABILITIES[self.name](logits / temperature)

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


class SingleLabel(_Task):
    """Images with one class each; targets are ``[N, num_classes]``, labels int64 ``[N]``."""

    name = "single_label"
    metrics = ("val_accuracy", "val_loss", "val_macro_f1")
    sums = ValidationSums
    figure = "confusion_matrix"
    mistakes_heading = (
        "the best model's most confident mistakes, of {} validation images\n"
        "true class → predicted class, with its probability"
    )

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy, summed over the batch."""
        return functional.cross_entropy(logits.float(), targets, reduction="sum")

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of each image, float32 ``[N]``."""
        return functional.cross_entropy(logits, targets.argmax(1), reduction="none")

    def labels(self, targets: Tensor) -> Tensor:
        """Targets → labels."""
        return targets.argmax(1)

    def draw(self, validation: Validation, class_names: Sequence[str]) -> Image.Image:
        """The picture of the best epoch: its confusion matrix."""
        assert validation.confusion is not None
        return draw_confusion(validation.confusion.numpy(), class_names)

    def assess(self, predictions: Predictions, class_names: Sequence[str], temperature: float) -> dict[str, Any]:
        """All numbers of an evaluation by name: shares of 1, counts, matrices with true classes as rows.

        ``top_5_accuracy`` is there where the model has more than 5 classes.
        """
        predicted, labels, num_classes = predictions.predicted, predictions.labels, len(class_names)
        validation, means = predictions.validation, averages(predictions.validation.rows())
        confidences = predictions.probabilities(temperature).amax(1)
        assert validation.confusion is not None
        confusion = validation.confusion.tolist()
        scores = {"loss": validation.loss, "macro_f1": means["macro"]["f1"]}
        if num_classes > _TOP:
            hits = (predictions.ranked(_TOP) == labels[:, None]).any(1)
            scores = {"top_5_accuracy": int(hits.sum()) / len(labels), **scores}
        content = _assessment(
            predictions,
            class_names,
            temperature,
            calibrated=lambda t: (predictions.probabilities(t).amax(1), predicted == labels),
            scores=scores,
            intervals=bootstrap_intervals(predicted, labels, confidences, num_classes),
            means=means,
        )
        return {**content, "confusion": confusion, "confusion_normalised": share_of_true_class(confusion)}

    def per_image(self, predictions: Predictions, paths: Sequence[str], temperature: float) -> list[Prediction]:
        """The lines of predictions.csv: each image with its class and the most likely ones."""
        classes = predictions.ranked(min(_TOP, predictions.logits.shape[1]))
        shares = predictions.probabilities(temperature).gather(1, classes)
        columns = (predictions.labels.tolist(), classes.tolist(), shares.tolist())
        return [Prediction(*row) for row in zip(paths, *columns, strict=True)]

    def mistakes(
        self, predictions: Predictions, lines: Sequence[Any], class_names: Sequence[str], temperature: float
    ) -> list[Mistake]:
        """The most confident mistakes; ``lines`` are those of ``per_image``."""
        confidences = predictions.probabilities(temperature).amax(1)
        hits = predictions.predicted == predictions.labels
        return [
            Mistake(place, lines[place].classes[0], lines[place].named(class_names))
            for place in most_confident_mistakes(confidences, hits, _MISTAKES_SHOWN)
        ]

    def severity(self, probabilities: Tensor, losses: Tensor) -> Tensor:
        """``[N]``, by which the mistakes for a picture are chosen."""
        return probabilities.amax(1)

    def mistake_title(self, targets: Tensor, given: Tensor, probabilities: Tensor, class_names: Sequence[str]) -> str:
        """True class, predicted class and its probability; of rows ``[num_classes]``."""
        true, predicted = names_of_set(targets, class_names), names_of_set(given, class_names)
        return f"{true}\n→ {predicted}\n{100 * float(probabilities.max()):.1f} %"


class MultiLabel(_Task):
    """Images with any number of classes; targets and bool labels are ``[N, num_classes]``."""

    name = "multi_label"
    metrics = ("val_map", "val_loss", "val_accuracy", "val_macro_f1")
    sums = MultiLabelSums
    figure = "class_scores"
    mistakes_heading = (
        "the best model's worst mistakes, of {} validation images\n"
        "it lacks a class that is there, or adds one that is not, of this probability"
    )

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean over the classes of binary cross-entropy, summed over the batch."""
        total = functional.binary_cross_entropy_with_logits(logits.float(), targets, reduction="sum")
        return total / targets.shape[1]

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The same of each image, float32 ``[N]``."""
        return functional.binary_cross_entropy_with_logits(logits, targets.float(), reduction="none").mean(1)

    def labels(self, targets: Tensor) -> Tensor:
        """Targets → labels."""
        return targets > 0.5

    def draw(self, validation: Validation, class_names: Sequence[str]) -> "Figure":
        """The picture of the best epoch: scores by class."""
        from sat_vg.backbone_finetuning.reports.evaluation_figures import draw_class_scores  # and matplotlib

        return draw_class_scores(class_names, validation.rows())

    def assess(self, predictions: Predictions, class_names: Sequence[str], temperature: float) -> dict[str, Any]:
        """All numbers of an evaluation by name: shares of 1 and counts.

        ``accuracy`` is of the images all of whose classes are right, ``map`` the mean of the classes' average
        precisions. Averages are over classes that have images (macro), or over all pairs of an image and a class
        (micro). Calibration is that of all pairs: how many of those with a like probability have the class.
        """
        validation, numbers = predictions.validation, predictions.validation.numbers()
        present = [row for row in validation.rows() if row["images"]]
        hits, given, images = validation.counts.sum(1).tolist()
        scores = {"loss": validation.loss, "map": numbers["val_map"]}
        return _assessment(
            predictions,
            class_names,
            temperature,
            calibrated=lambda t: (predictions.probabilities(t).flatten(), predictions.labels.flatten()),
            scores={**scores, "macro_f1": numbers["macro_f1"], "micro_f1": numbers["micro_f1"]},
            intervals=bootstrap_intervals_of_sets(predictions.logits, predictions.given, predictions.labels),
            means={
                "macro": {n: mean_of_known([row[n] for row in present]) for n in (*SCORES, "average_precision")},
                "micro": {
                    "precision": hits / max(given, 1), "recall": hits / max(images, 1), "f1": numbers["micro_f1"]
                },
            },
        )  # fmt: skip

    def per_image(self, predictions: Predictions, paths: Sequence[str], temperature: float) -> list[SetPrediction]:
        """The lines of predictions.csv: each image with its classes, those it is given, and all probabilities."""
        shares = predictions.probabilities(temperature)
        columns = (predictions.labels, predictions.given, shares, predictions.losses)
        return [SetPrediction(*row) for row in zip(paths, *(one.tolist() for one in columns), strict=True)]

    def mistakes(
        self, predictions: Predictions, lines: Sequence[Any], class_names: Sequence[str], temperature: float
    ) -> list[Mistake]:
        """The images with the largest loss; of each the class with the most wrong probability is explained."""
        hits = (predictions.given == predictions.labels).all(1)
        found = []
        for place in most_confident_mistakes(predictions.losses, hits, _MISTAKES_SHOWN):
            distance = (predictions.probabilities()[place] - predictions.labels[place].double()).abs()
            is_wrong = predictions.given[place] != predictions.labels[place]
            explained = int(torch.where(is_wrong, distance, -1.0).argmax())
            entry = {**lines[place].named(class_names), "explained": class_names[explained]}
            found.append(Mistake(place, explained, entry))
        return found

    def severity(self, probabilities: Tensor, losses: Tensor) -> Tensor:
        """``[N]``, by which the mistakes for a picture are chosen."""
        return losses

    def mistake_title(self, targets: Tensor, given: Tensor, probabilities: Tensor, class_names: Sequence[str]) -> str:
        """A line for each of the worst wrong classes; of rows ``[num_classes]``."""
        wrong = (given != targets).nonzero()[:, 0]
        wrong = wrong[(probabilities[wrong] - targets[wrong].float()).abs().argsort(descending=True, stable=True)]
        lines = [
            f"{'lacks' if targets[i] else 'adds'} {one_line(class_names[i])} {100 * probabilities[i]:.0f} %"
            for i in wrong[:_WRONG_CLASSES].tolist()
        ]
        more = len(wrong) - _WRONG_CLASSES
        return "\n".join([*lines, f"and {more} more"] if more > 0 else lines)


def _assessment(
    predictions: Predictions,
    class_names: Sequence[str],
    temperature: float,
    calibrated: Callable[[float], tuple[Tensor, Tensor]],
    scores: dict[str, float],
    intervals: dict[str, list[float]],
    means: dict[str, dict[str, float]],
) -> dict[str, Any]:
    """What both tasks have in evaluation.json; ``calibrated``: temperature → probabilities and hits."""
    bins, before = (reliability(*calibrated(t)) for t in (temperature, 1.0))
    return {
        "task": predictions.task,
        "images": len(predictions.labels),
        "accuracy": predictions.validation.accuracy,
        **scores,
        "ece": expected_calibration_error(bins),
        "intervals": {"level": LEVEL, "resamples": RESAMPLES, **intervals},
        "averages": means,
        "classes": dict(zip(class_names, predictions.validation.rows(), strict=True)),
        "calibration": {
            "temperature": temperature,
            "nll": negative_log_likelihood(predictions.logits, predictions.labels, temperature),
            "bins": bins,
            "uncalibrated_ece": expected_calibration_error(before),
            "uncalibrated_nll": negative_log_likelihood(predictions.logits, predictions.labels),
        },
    }


Task: TypeAlias = SingleLabel | MultiLabel
TASKS: dict[TaskName, Task] = {"single_label": SingleLabel(), "multi_label": MultiLabel()}


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
