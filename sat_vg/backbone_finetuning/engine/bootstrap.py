"""How far scores may lie off because there were only so many images: bootstrap intervals."""

import torch
from torch import Tensor

from sat_vg.backbone_finetuning.engine.calibration import NUM_BINS, confidence_bins
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
    tail = (1 - LEVEL) / 2
    ends = torch.cat(scores, 1).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=1).T.tolist()
    return dict(zip(("accuracy", "macro_f1", "ece"), ends, strict=True))


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
