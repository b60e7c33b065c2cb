"""The exact linear probe: logistic regression on frozen features, without a learning rate.

Multinomial where an image has one class; where it can have several, one regression for each class. Architectures are
compared by it (Kornblith et al., 2019): the optimum depends on the features alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from sat_vg.backbone_finetuning.data.loading.loaders import Pass
from sat_vg.backbone_finetuning.data.sources.multi_label_split import split_label_sets
from sat_vg.backbone_finetuning.evaluation.metrics import average_precisions, mean_of_known
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.models.probabilities import TaskName
from sat_vg.backbone_finetuning.training.batch_sources import image_values
from sat_vg.backbone_finetuning.utils.precision import Precision
from sat_vg.backbone_finetuning.utils.ranks import Ranks, SingleProcess
from sat_vg.backbone_finetuning.utils.stop_signals import InterruptRequest, StopRequested
from sat_vg.backbone_finetuning.utils.terminal import progress

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
    """A solved linear classifier for plain features, on the CPU.

    Attributes:
        weight: ``[num_classes, D]`` float32.
        bias: ``[num_classes]`` float32; zeros where the classifier has none.
        strength: of the L2 penalty that was chosen.
        held_out_score: accuracy, or mean average precision, at that strength on the part of the images that chose it;
            None where there were too few.
    """

    weight: Tensor
    bias: Tensor
    strength: float
    held_out_score: float | None


@torch.no_grad()
def pooled_features(
    model: FineTuneModel,
    batches: Pass,
    precision: Precision,
    interrupt: InterruptRequest | None = None,
    ranks: Ranks | None = None,
) -> tuple[Tensor, Tensor]:
    """The classifier's inputs for all images of ``batches``, in order.

    Args:
        model: on its device.
        batches: of all processes, which share them.
        precision: device and formats.
        interrupt: checked after each batch.
        ranks: the processes; unset: this one alone.

    Returns:
        ``(features [N, D], targets [N, num_classes])``, both float32, on the model's device.

    Raises:
        StopRequested: a signal has come.
    """
    model.eval()
    ranks, interrupt = ranks or SingleProcess(), interrupt or InterruptRequest()
    own: list[tuple[Tensor, Tensor]] = []
    for batch in progress(batches.shared(ranks.share), desc="features", unit="batch"):
        with precision.autocast():
            values = image_values(model, precision, batch.to(precision.device))
            own.append((model.forward_pooled(values).float().cpu(), batch.targets))
        if interrupt.requested:
            break
    if any(ranks.all_reduce_max(interrupt.requested)):
        raise StopRequested
    in_turns = zip_longest(*ranks.all_gather(own))  # as the batches were shared out
    features, targets = zip(*(few for turn in in_turns for few in turn if few is not None), strict=True)
    return torch.cat(features).to(precision.device), torch.cat(targets).to(precision.device)


@dataclass(frozen=True)
class Goal:
    """What a probe is solved for.

    Attributes:
        loss: ``(logits, labels) ->`` mean over the images.
        score: ``(logits, labels) ->`` what chooses the strength; the higher the better.
        hold_out: ``(labels, num_classes, generator) ->`` bool ``[N]``, the images that choose it.
        unit: of the score, for the terminal.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    score: Callable[[Tensor, Tensor], float]
    hold_out: Callable[[Tensor, int, torch.Generator], Tensor]
    unit: str


def solve_linear_probe(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    generator: torch.Generator,
    has_bias: bool = True,
    task: TaskName = "single_label",
) -> LinearProbe:
    """Solve for the best linear classifier on frozen features.

    The features are standardised, L2 is chosen on a fifth of the images that is held out (the strongest of equally
    good ones), the problem is solved once more on all images by L-BFGS (Liu & Nocedal, 1989), and the
    standardisation is folded into the result.

    Args:
        features: ``[N, D]``, float.
        labels: int64 ``[N]``; bool ``[N, num_classes]`` where an image can have several classes.
        num_classes: outputs.
        generator: chooses what is held out; on the CPU.
        has_bias: whether the classifier can have a bias; without one the features are scaled, not centred.
        task: which of the two the labels are.
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
    problem = Problem(standardised, labels, num_classes, has_bias, GOALS[task])
    strength, score = _choose_strength(problem, generator)
    solved = _solve(problem, strength, _ITERATIONS)
    weight = solved[:, :-1] * scale
    bias = solved[:, -1] - weight @ mean
    return LinearProbe(weight.float().cpu(), bias.float().cpu(), strength, score)


def _choose_strength(whole: "Problem", generator: torch.Generator) -> tuple[float, float | None]:
    """The best strength on the held-out images, from the strongest down, each start from the one before."""
    held_out = whole.goal.hold_out(whole.labels, whole.num_classes, generator)
    if not held_out.any():
        return 1e-3, None
    problem = whole._replace(features=whole.features[~held_out], labels=whole.labels[~held_out])
    features, labels = whole.features[held_out], whole.labels[held_out]
    best_place, best_score, start = 0, -1.0, None
    for place, strength in enumerate(STRENGTHS):
        start = _solve(problem, strength, _ITERATIONS_TO_RANK, start)
        score = whole.goal.score(features @ start[:, :-1].T + start[:, -1], labels)
        if score > best_score:
            best_place, best_score = place, score
        if place - best_place > _PATIENCE:
            break
    return STRENGTHS[best_place], best_score


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


def _hold_out_sets(labels: Tensor, num_classes: int, generator: torch.Generator) -> Tensor:
    """``[N]`` bool: about a fifth of each class, where ``labels [N, num_classes]`` has several an image."""
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    if len(labels) >= _FEWEST_TO_HOLD_OUT:
        rows, places = labels.cpu().unique(dim=0, return_inverse=True)
        sets = [row.nonzero()[:, 0].tolist() for row in rows]
        seed = int(torch.randint(2**31, (), generator=generator))
        held_out[split_label_sets(places.tolist(), sets, _HELD_OUT, seed)] = True
    return held_out.to(labels.device)


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(1) == labels).double().mean())


def _mean_average_precision(logits: Tensor, labels: Tensor) -> float:
    return mean_of_known(average_precisions(logits.cpu(), labels.cpu()))


def _sum_of_binary_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Summed over the classes, so that the penalty weighs on each regression as if it were the only one."""
    losses = functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")
    return losses.sum(1).mean()


GOALS: dict[TaskName, Goal] = {
    "single_label": Goal(functional.cross_entropy, _accuracy, _hold_out, "%"),
    "multi_label": Goal(_sum_of_binary_losses, _mean_average_precision, _hold_out_sets, "% mAP"),
}


class Problem(NamedTuple):
    """Standardised features ``[N, D]`` and labels that a classifier is sought for."""

    features: Tensor
    labels: Tensor
    num_classes: int
    has_bias: bool
    goal: Goal


def _solve(problem: Problem, strength: float, iterations: int, start: Tensor | None = None) -> Tensor:
    """``[num_classes, D + 1]``: weights and, in the last column, biases, which are not penalised."""
    features, labels, num_classes, has_bias, goal = problem
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
        loss = goal.loss(features @ weight.T + bias, labels) + strength / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return solution.detach()
