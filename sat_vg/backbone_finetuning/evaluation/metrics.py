"""Metrics as sums on the device, divided once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from sat_vg.backbone_finetuning.configs.choices import Metric
from sat_vg.backbone_finetuning.utils.ranks import Ranks

SCORES = ("precision", "recall", "f1")


@dataclass(frozen=True)
class Validation:
    """What a pass over the validation images gave."""

    loss: float  # mean over the images: cross-entropy, or the mean of the classes' binary cross-entropies
    accuracy: float  # share of images whose highest logit is their class, or of which every class is right
    # int64 ``[3, num_classes]`` on the CPU: images of the class that were found, images that were given to it, images
    # that have it
    counts: Tensor
    # int64 ``[num_classes, num_classes]`` on the CPU, rows are true classes, columns predictions; None where an image
    # can have several classes
    confusion: Tensor | None = None
    # of each class, where an image can have several; None for a class without images
    average_precisions: tuple[float | None, ...] | None = None

    @property
    def f1_by_class(self) -> list[float | None]:
        """The harmonic mean of precision and recall of each class; None for a class without images."""
        return [2 * h / (given + i) if i else None for h, given, i in self.counts.T.tolist()]

    @property
    def macro_f1(self) -> float:
        """The mean of ``f1_by_class`` over the classes that have images."""
        return mean_of_known(self.f1_by_class)

    def numbers(self) -> dict[str, float]:
        """What is logged, by name; where an image can have several classes also ``micro_f1`` and ``val_map``."""
        numbers = {"val_loss": self.loss, "val_accuracy": self.accuracy, "macro_f1": self.macro_f1}
        if self.average_precisions is None:
            return numbers
        hits, given, images = self.counts.sum(1).tolist()
        micro_f1 = 2 * hits / max(given + images, 1)
        return {**numbers, "micro_f1": micro_f1, "val_map": mean_of_known(self.average_precisions)}

    def value_of(self, metric: Metric) -> float:
        """The number that "best" may mean."""
        return self.numbers()["macro_f1" if metric == "val_macro_f1" else metric]

    def rows(self) -> list[dict[str, float]]:
        """Precision, recall and F1 of each class, its images and, if there is one, its ``average_precision``."""
        rows = [
            {"precision": h / max(given, 1), "recall": h / max(i, 1), "f1": 2 * h / max(given + i, 1), "images": i}
            for h, given, i in self.counts.T.tolist()
        ]
        for row, value in zip(rows, self.average_precisions or (), strict=False):
            row["average_precision"] = value or 0.0
        return rows


def averages(rows: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Means of ``Validation.rows`` over the classes that have images.

    ``macro``: each class counts the same; ``weighted``: each image does.
    """
    present = [row for row in rows if row["images"]]
    total = sum(row["images"] for row in present)
    return {
        "macro": {score: sum(row[score] for row in present) / len(present) for score in SCORES},
        "weighted": {score: sum(row["images"] * row[score] for row in present) / total for score in SCORES},
    }


def share_of_true_class(confusion: Sequence[Sequence[int]]) -> list[list[float]]:
    """A confusion matrix whose rows sum to 1; rows of classes without images are zeros."""
    return [[count / max(sum(row), 1) for count in row] for row in confusion]


def mean_of_known(values: Sequence[float | None]) -> float:
    """The mean of the values that are there; 0 where none is."""
    known = [value for value in values if value is not None]
    return sum(known) / max(len(known), 1)


class ValidationSums:
    """Adds up a validation of images with one class each; nothing leaves the device before ``result``."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.num_classes = num_classes
        self.loss_sum = _zero(device)
        self.confusion = torch.zeros(num_classes * num_classes, dtype=torch.int64, device=device)

    def add(self, logits: Tensor, targets: Tensor, loss_sum: Tensor) -> None:
        """Add a batch: logits and targets ``[B, num_classes]`` and the batch's summed loss."""
        cells = targets.argmax(1) * self.num_classes + logits.argmax(1)
        self.confusion.scatter_add_(0, cells, torch.ones_like(cells))  # bincount would wait for the device
        self.loss_sum += loss_sum

    def gather(self, ranks: Ranks) -> None:
        """Put those of all processes together; all of them have to."""
        ranks.all_reduce_sum(self.confusion, self.loss_sum)

    def result(self) -> Validation:
        """Divide the sums."""
        confusion = self.confusion.view(self.num_classes, self.num_classes).cpu()
        count = int(confusion.sum())
        counts = torch.stack([confusion.diagonal(), confusion.sum(0), confusion.sum(1)])
        return Validation(float(self.loss_sum) / count, int(confusion.trace()) / count, counts, confusion)


class MultiLabelSums:
    """The same where an image can have several classes; it has those whose probability is one half or more.

    Average precision needs all images at once, so logits and targets are kept (4 and 1 bytes a class and image).
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.loss_sum = _zero(device)
        self.num_right = torch.zeros((), dtype=torch.int64, device=device)
        self.counts = torch.zeros(3, num_classes, dtype=torch.int64, device=device)
        self.logits: list[Tensor] = []
        self.has_class: list[Tensor] = []

    def add(self, logits: Tensor, targets: Tensor, loss_sum: Tensor) -> None:
        """See ``ValidationSums``."""
        given, has_class = logits >= 0, targets > 0.5
        self.counts += torch.stack([(given & has_class).sum(0), given.sum(0), has_class.sum(0)])
        self.num_right += (given == has_class).all(1).sum()
        self.loss_sum += loss_sum
        self.logits.append(logits)
        self.has_class.append(has_class)

    def gather(self, ranks: Ranks) -> None:
        """See ``ValidationSums``."""
        ranks.all_reduce_sum(self.counts, self.num_right, self.loss_sum)
        parts = ranks.all_gather(
            [(logits.cpu(), has.cpu()) for logits, has in zip(self.logits, self.has_class, strict=True)]
        )
        self.logits, self.has_class = map(list, zip(*(pair for part in parts for pair in part), strict=True))

    def result(self) -> Validation:
        """Divide the sums."""
        logits, has_class = torch.cat(self.logits).cpu(), torch.cat(self.has_class).cpu()
        count = len(logits)
        return Validation(
            float(self.loss_sum) / count,
            int(self.num_right) / count,
            self.counts.cpu(),
            average_precisions=average_precisions(logits, has_class),
        )


Sums: TypeAlias = ValidationSums | MultiLabelSums


class RankedImages(NamedTuple):
    """The images in falling order of one class's logit, of which average precision is computed."""

    order: Tensor  # int64 ``[N]``, places of the images
    has_class: Tensor  # float64 ``[N]``, in that order
    ends: Tensor  # int64, the last place of each run of equal logits, which no threshold can part

    @classmethod
    def of(cls, logits: Tensor, has_class: Tensor) -> "RankedImages":
        """Rank images by ``logits [N]``, of which ``has_class`` (bool ``[N]``) have the class."""
        order = logits.argsort(descending=True, stable=True)
        ranked = logits[order]
        is_end = torch.cat([ranked[1:] != ranked[:-1], torch.ones(1, dtype=torch.bool)])
        return cls(order, has_class[order].double(), is_end.nonzero()[:, 0])

    def average_precision(self, times: Tensor) -> Tensor:
        """``[R]``, of R samples with each image ``times [R, N]`` times; 0 where none of them has the class."""
        times = times[:, self.order]
        taken = times.cumsum(1)[:, self.ends]
        found = (times * self.has_class).cumsum(1)[:, self.ends]
        steps = found.diff(dim=1, prepend=found.new_zeros(len(found), 1))
        return (steps * found / taken.clamp(min=1)).sum(1) / found[:, -1].clamp(min=1)


def average_precisions(logits: Tensor, has_class: Tensor) -> tuple[float | None, ...]:
    """The average precision of each class: its precision at each recall, weighted by the recall's increase.

    Of ``logits`` only the order counts; both are ``[N, num_classes]``. None for a class without images, whose recall
    is not defined.
    """
    # In float64 two logits that differ have probabilities that differ, unless both are 0 or 1 to 16 digits.
    shares, once = logits.double().sigmoid(), torch.ones(1, len(logits), dtype=torch.float64)
    return tuple(
        float(RankedImages.of(shares[:, place], has_class[:, place]).average_precision(once)) if occurs else None
        for place, occurs in enumerate(has_class.any(0).tolist())
    )


def _zero(device: torch.device) -> Tensor:
    return torch.zeros((), dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
