"""How far scores may lie off because there were only so many images: bootstrap intervals."""

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from sat_vg.backbone_finetuning.evaluation.calibration import NUM_BINS, confidence_bins
from sat_vg.backbone_finetuning.evaluation.metrics import RankedImages
from sat_vg.backbone_finetuning.utils.seeding import torch_generator

RESAMPLES, LEVEL = 1000, 0.95
_DRAWS_AT_ONCE = 2**21  # a few dozen MiB


def bootstrap_intervals(
    predicted: Tensor, labels: Tensor, confidences: Tensor, num_classes: int, seed: int = 0
) -> dict[str, list[float]]:
    """Percentile intervals (Efron, 1979) of accuracy, macro F1 and calibration error.

    The images are drawn anew with replacement, as many as there are, ``RESAMPLES`` times; the interval holds the
    middle 95 % of the scores. It says what another set of images of the same kind may give, not another training.

    Args:
        predicted: int64 ``[N]``.
        labels: int64 ``[N]``.
        confidences: ``[N]``, the probability of each predicted class.
        num_classes: of the model.
        seed: of the drawing.

    Returns:
        Lower and upper end of ``accuracy``, ``macro_f1`` and ``ece``.
    """
    count, generator = len(labels), torch_generator(seed)
    bins, gaps = confidence_bins(confidences), confidences.double() - (predicted == labels).double()
    size = max(1, _DRAWS_AT_ONCE // max(count, num_classes))
    scores = []
    for begin in range(0, RESAMPLES, size):
        drawn = torch.randint(count, (min(size, RESAMPLES - begin), count), generator=generator)
        calibration = _sums_by_place(bins[drawn], gaps[drawn], NUM_BINS).abs().sum(1) / count
        scores.append(torch.stack([*_accuracy_and_f1(predicted[drawn], labels[drawn], num_classes), calibration]))
    return _intervals(("accuracy", "macro_f1", "ece"), torch.cat(scores, 1))


def bootstrap_intervals_of_sets(
    logits: Tensor, given: Tensor, has_class: Tensor, seed: int = 0
) -> dict[str, list[float]]:
    """The same of ``map``, ``accuracy``, ``macro_f1`` and ``micro_f1`` where an image can have several classes.

    Of ``logits`` only the order counts; ``given`` and ``has_class`` are bool; all are ``[N, num_classes]``.
    """
    (count, num_classes), generator = has_class.shape, torch_generator(seed)
    curves = [RankedImages.of(logits[:, place], has_class[:, place]) for place in range(num_classes)]
    is_right = (given == has_class).all(1).double()
    hits, said, images = (part.double() for part in (given & has_class, given, has_class))
    size = max(1, _DRAWS_AT_ONCE // max(count, num_classes))
    scores = []
    for begin in tqdm(range(0, RESAMPLES, size), desc="intervals", unit="batch", leave=False, disable=None):
        drawn = torch.randint(count, (min(size, RESAMPLES - begin), count), generator=generator)
        times = _sums_by_place(drawn, torch.ones_like(drawn, dtype=torch.float64), count)
        found, wrong_or_right, there = times @ hits, times @ said, times @ images
        f1 = 2 * found / (wrong_or_right + there).clamp(min=1)
        precision = torch.stack([curve.average_precision(times) for curve in curves], 1)
        present = there > 0
        num_present = present.sum(1).clamp(min=1)
        micro_f1 = 2 * found.sum(1) / (wrong_or_right + there).sum(1).clamp(min=1)
        macro_f1, mean_precision = ((value * present).sum(1) / num_present for value in (f1, precision))
        scores.append(torch.stack([mean_precision, times @ is_right / count, macro_f1, micro_f1]))
    return _intervals(("map", "accuracy", "macro_f1", "micro_f1"), torch.cat(scores, 1))


def _intervals(names: Sequence[str], scores: Tensor) -> dict[str, list[float]]:
    """Lower and upper end of each score's middle part; ``scores [S, R]``."""
    tail = (1 - LEVEL) / 2
    ends = scores.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=1).T.tolist()
    return dict(zip(names, ends, strict=True))


def _accuracy_and_f1(predicted: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Accuracy and macro F1, each ``[R]``, of resamples ``[R, N]``; a class that was not drawn is left out."""
    is_right = (predicted == labels).double()
    images = _sums_by_place(labels, torch.ones_like(is_right), num_classes)
    said = _sums_by_place(predicted, torch.ones_like(is_right), num_classes)
    f1 = 2 * _sums_by_place(labels, is_right, num_classes) / (images + said).clamp(min=1)
    present = images > 0
    return is_right.mean(1), (f1 * present).sum(1) / present.sum(1)


def _sums_by_place(places: Tensor, values: Tensor, num_places: int) -> Tensor:
    """``[R, num_places]``: in each row the sums of ``values [R, N]`` over equal ``places [R, N]``."""
    return values.new_zeros(len(values), num_places).scatter_add_(1, places, values)
