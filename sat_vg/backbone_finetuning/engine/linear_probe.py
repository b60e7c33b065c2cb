"""The exact linear probe: multinomial logistic regression on frozen features, without a learning rate.

Architectures are compared by it (Kornblith et al., 2019): the optimum depends on the features alone.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from sat_vg.backbone_finetuning.engine.feeds import SizedBatches, image_values
from sat_vg.backbone_finetuning.engine.interrupts import InterruptRequest
from sat_vg.backbone_finetuning.engine.precision import Precision
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel

# Strengths of the L2 penalty per image, as a share of the loss's own scale (Kornblith et al., 2019, try 45 of them).
STRENGTHS = tuple(10.0**exponent for exponent in range(1, -8, -1))  # from the strongest down
_HELD_OUT = 0.2
_FEWEST_TO_HOLD_OUT = 10
# The strengths need only be ranked; the final solution is taken to its end.
_ITERATIONS_TO_RANK, _ITERATIONS = 100, 1000
_TOLERANCE = 1e-6
_PATIENCE = 2  # strengths in a row that are no better
_MOST_BYTES_IN_FP64 = 2**30


@dataclass(frozen=True)
class LinearProbe:
    """A solved linear classifier for plain features.

    Attributes:
        weight: ``[num_classes, D]`` float32.
        bias: ``[num_classes]`` float32; zeros where the classifier has none.
        strength: of the L2 penalty that was chosen.
        held_out_accuracy: at that strength, on the part of the images that chose it; None where there were too few.
    """

    weight: Tensor
    bias: Tensor
    strength: float
    held_out_accuracy: float | None


@torch.no_grad()
def pooled_features(
    model: FineTuneModel, batches: SizedBatches, precision: Precision, interrupt: InterruptRequest | None = None
) -> tuple[Tensor, Tensor] | None:
    """What the classifier sees of all images of ``batches``, each once; None where a stop was asked for.

    Returns:
        ``(features [N, D] float32, labels [N] int64)`` on the model's device.
    """
    model.eval()
    features, labels = [], []
    for batch in tqdm(batches, desc="features", unit="batch", leave=False, disable=None):
        with precision.autocast():
            values = image_values(model, precision, batch.to(precision.device))
            features.append(model.forward_pooled(values).float())
        labels.append(batch.targets.argmax(1))
        if interrupt is not None and interrupt.requested:
            return None
    return torch.cat(features), torch.cat(labels).to(precision.device)


def solve_linear_probe(
    features: Tensor, labels: Tensor, num_classes: int, generator: torch.Generator, has_bias: bool = True
) -> LinearProbe:
    """Solve for the best linear classifier on frozen features.

    The features are standardised, L2 is chosen on a fifth of the images that is held out (the strongest of equally
    good ones), the problem is solved once more on all images by L-BFGS (Liu & Nocedal, 1989), and the
    standardisation is folded into the result.

    Args:
        features: ``[N, D]``, float.
        labels: ``[N]``, int64.
        num_classes: outputs.
        generator: chooses what is held out; on the CPU.
        has_bias: whether the classifier can have a bias; without one the features are scaled, not centred.
    """
    dtype = (
        torch.float64
        if 8 * features.numel() <= _MOST_BYTES_IN_FP64 and features.device.type != "mps"
        else torch.float32
    )
    features = features.to(dtype)
    mean = features.mean(0) if has_bias else torch.zeros_like(features[0])
    # A feature that is the same for all images tells nothing; dividing by its rounding error would make it loud.
    deviation = features.std(0, correction=0)
    scale = torch.where(deviation > 1e-6 * (1 + mean.abs()), deviation.reciprocal(), torch.zeros_like(deviation))
    standardised = (features - mean) * scale
    strength, accuracy = _choose_strength(standardised, labels, num_classes, generator, has_bias)
    solved = _solve(Problem(standardised, labels, num_classes, has_bias), strength, _ITERATIONS)
    weight = solved[:, :-1] * scale
    bias = solved[:, -1] - weight @ mean
    return LinearProbe(weight.float(), bias.float(), strength, accuracy)


def _choose_strength(
    features: Tensor, labels: Tensor, num_classes: int, generator: torch.Generator, has_bias: bool
) -> tuple[float, float | None]:
    """The best strength on the held-out images, from the strongest down, each start from the one before."""
    held_out = _hold_out(labels, num_classes, generator)
    if not held_out.any():
        return 1e-3, None
    problem = Problem(features[~held_out], labels[~held_out], num_classes, has_bias)
    best_place, best_accuracy, start = 0, -1.0, None
    for place, strength in enumerate(STRENGTHS):
        start = _solve(problem, strength, _ITERATIONS_TO_RANK, start)
        logits = features[held_out] @ start[:, :-1].T + start[:, -1]
        accuracy = float((logits.argmax(1) == labels[held_out]).double().mean())
        if accuracy > best_accuracy:
            best_place, best_accuracy = place, accuracy
        if place - best_place > _PATIENCE:
            break
    return STRENGTHS[best_place], best_accuracy


def _hold_out(labels: Tensor, num_classes: int, generator: torch.Generator) -> Tensor:
    """``[N]`` bool: a fifth of each class, at least one image and never all of them; nothing of tiny data sets."""
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    if len(labels) >= _FEWEST_TO_HOLD_OUT:
        for label in range(num_classes):
            places = (labels.cpu() == label).nonzero()[:, 0]
            if len(places) > 1:
                count = max(1, round(_HELD_OUT * len(places)))
                held_out[places[torch.randperm(len(places), generator=generator)[:count]]] = True
    return held_out.to(labels.device)


class Problem(NamedTuple):
    """Standardised features ``[N, D]`` and labels ``[N]`` that a classifier is sought for."""

    features: Tensor
    labels: Tensor
    num_classes: int
    has_bias: bool


def _solve(problem: Problem, strength: float, iterations: int, start: Tensor | None = None) -> Tensor:
    """``[num_classes, D + 1]``: weights and, in the last column, biases, which are not penalised."""
    features, labels, num_classes, has_bias = problem
    solution = features.new_zeros(num_classes, features.shape[1] + 1) if start is None else start.clone()
    solution.requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [solution],
        max_iter=iterations,
        history_size=20,
        line_search_fn="strong_wolfe",
        tolerance_grad=_TOLERANCE,
        tolerance_change=1e-12,
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        weight, bias = solution[:, :-1], solution[:, -1] if has_bias else solution.new_zeros(num_classes)
        loss = functional.cross_entropy(features @ weight.T + bias, labels) + strength / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return solution.detach()
