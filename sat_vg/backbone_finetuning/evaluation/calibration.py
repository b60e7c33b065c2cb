"""Whether probabilities mean what they say: reliability, calibration error, and temperature scaling.

All three after Guo et al., "On Calibration of Modern Neural Networks" (2017). Where an image can have several
classes, each pair of an image and a class is a prediction of its own, and all of them share one temperature.
"""

import torch
from torch import Tensor
from torch.nn import functional

from sat_vg.backbone_finetuning.utils.errors import ConfigError

NUM_BINS = 15
_LOWEST, _HIGHEST = 0.01, 100.0  # temperatures outside are no calibration but a sign that there is no optimum


def confidence_bins(confidences: Tensor, num_bins: int = NUM_BINS) -> Tensor:
    """The bin of each confidence, int64 ``[N]``: bin m, from 0, covers ``(m / num_bins, (m + 1) / num_bins]``.

    torchmetrics' bins are closed on the other side, so that a confidence of 1, which is common, gets a bin of its own
    and the error comes out as that of 16 bins; these are the paper's.
    """
    edges = torch.arange(1, num_bins, dtype=torch.float64) / num_bins
    return torch.bucketize(confidences.double(), edges)


def reliability(confidences: Tensor, hits: Tensor, num_bins: int = NUM_BINS) -> list[dict[str, float]]:
    """How often predictions of like confidence are right.

    Args:
        confidences: ``[N]``, the probability of each predicted class; or of each pair of an image and a class.
        hits: bool ``[N]``, whether the prediction is right; or whether the image has the class.
        num_bins: of equal width.

    Returns:
        By bin: ``low``, ``high``, ``images``, mean ``confidence`` and ``accuracy``; both 0 where there are no images.
    """
    bins = confidence_bins(confidences, num_bins)
    images = torch.bincount(bins, minlength=num_bins)
    confidence, accuracy = (
        (torch.bincount(bins, weights=values.double(), minlength=num_bins) / images.clamp(min=1)).tolist()
        for values in (confidences, hits)
    )
    return [
        {
            "low": place / num_bins,
            "high": (place + 1) / num_bins,
            "images": count,
            "confidence": confidence[place],
            "accuracy": accuracy[place],
        }
        for place, count in enumerate(images.tolist())
    ]


def expected_calibration_error(bins: list[dict[str, float]]) -> float:
    """The gap between confidence and accuracy, averaged over all that ``reliability`` counted; 0 to 1."""
    gaps = sum(row["images"] * abs(row["accuracy"] - row["confidence"]) for row in bins)
    return gaps / sum(row["images"] for row in bins)


def log_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean cross-entropy of ``logits [N, C]``, in nats; of bool labels the mean binary one over all pairs."""
    if labels.ndim == 1:
        return functional.cross_entropy(logits, labels)
    return functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))


def negative_log_likelihood(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> float:
    """The mean (binary) cross-entropy of ``logits [N, C] / temperature``, in nats, computed in float64."""
    return float(log_loss(logits.double() / temperature, labels))


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The number to divide logits by, such that probabilities fit the labels best (Guo et al., 2017, section 4.2).

    Minimises the negative log-likelihood by L-BFGS over 1 / temperature, in which the problem is convex: there is one
    optimum, or it lies at infinity. Which classes are given does not change. It is above 1 for a model that is too
    sure of itself.

    Args:
        logits: ``[N, num_classes]``.
        labels: int64 ``[N]``; bool ``[N, num_classes]`` where an image can have several classes.

    Raises:
        ConfigError: there is no optimum: all predictions are right, or they are no better than chance.
    """
    logits, has_one = logits.detach().double(), labels.ndim == 1
    given = logits.argmax(1) if has_one else logits >= 0
    if bool((given == labels).all()):
        what = f"all {len(labels)} predictions" if has_one else f"all classes of all {len(labels)} images"
        raise ConfigError(
            f"no temperature can be fitted: {what} are right, so the likelihood grows as the temperature falls to 0. "
            "Calibrate on images of which some are mistaken; nothing was written"
        )
    inverse = torch.ones((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [inverse], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-10, tolerance_change=1e-14
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = log_loss(logits * inverse, labels)
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    found = float(inverse.detach())
    if not 1 / _HIGHEST <= found <= 1 / _LOWEST:
        raise ConfigError(
            f"no temperature between {_LOWEST} and {_HIGHEST:g} fits: on these {len(labels)} images the predictions "
            f"are {'hardly ever wrong' if found > 1 else 'no better than chance'}. Calibrate on other images, or "
            "train longer; nothing was written"
        )
    return 1 / found
