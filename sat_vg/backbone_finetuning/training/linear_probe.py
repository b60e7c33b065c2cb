"""The exact linear probe: logistic regression on frozen features, without a learning rate.

Multinomial where an image has one class; where it can have several, one regression for each class. Architectures are
compared by it (Kornblith et al., 2019): the optimum depends on the features alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from sat_vg.backbone_finetuning.data.loading.loaders import Pass
from sat_vg.backbone_finetuning.data.sources.listed_splits import split_label_sets
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
NUM_FOLDS = 5
_FEWEST_TO_HOLD_OUT = 10
_STRENGTH_OF_FEW = 1e-2  # where nothing can be held out
_MOST_BYTES_IN_FP64 = 2**30


@dataclass(frozen=True)
class LinearProbe:
    """A solved linear classifier for plain features, on the CPU.

    Attributes:
        weight: ``[num_classes, D]`` float32.
        bias: ``[num_classes]`` float32; zeros where the classifier has none.
        strength: of the L2 penalty that was chosen.
        held_out_loss: cross-entropy in nats at that strength, of images that the classifier was not solved on, which
            chose it: mean over the images, summed over the classes where an image can have several. None where there
            were too few.
        held_out_score: accuracy, or mean average precision, of the same images.
    """

    weight: Tensor
    bias: Tensor
    strength: float
    held_out_loss: float | None
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
        losses: ``(logits, labels) ->`` cross-entropy of each image, ``[N]``.
        score: ``(logits, labels) ->`` what is told of held-out images beside their loss; the higher the better.
        folds: ``(labels, num_classes, generator) ->`` int64 ``[N]`` on the CPU, the fold that each image is in.
        of_learnt: ``(logits, labels, labels of other images) ->`` logits and labels of the part that can be learnt
            from the other images.
        curvature: ``num_classes ->`` the second derivative of an image's loss by a logit, where all are 0.
        unit: of the score, for the terminal.
    """

    losses: Callable[[Tensor, Tensor], Tensor]
    score: Callable[[Tensor, Tensor], float]
    folds: Callable[[Tensor, int, torch.Generator], Tensor]
    of_learnt: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    curvature: Callable[[int], float]
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

    The features are standardised and turned to their principal axes. L2 is chosen by the cross-entropy of held-out
    images over ``NUM_FOLDS`` folds. The problem is then solved once more on all images, by L-BFGS (Liu & Nocedal,
    1989) with the curvature along each axis as preconditioner, and the standardisation is folded into the result.

    Args:
        features: ``[N, D]``, float.
        labels: int64 ``[N]``; bool ``[N, num_classes]`` where an image can have several classes.
        num_classes: outputs.
        generator: draws the folds; on the CPU.
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
    turned, axes = _principal_axes(standardised)
    problem = Problem(turned, labels, num_classes, has_bias, GOALS[task])
    strength, held_out_loss, held_out_score = _choose_strength(problem, generator)
    solved = _solve(problem, strength, TO_THE_END)
    weight = solved[:, :-1] @ axes * scale
    bias = solved[:, -1] - weight @ mean
    return LinearProbe(weight.float().cpu(), bias.float().cpu(), strength, held_out_loss, held_out_score)


def _principal_axes(features: Tensor) -> tuple[Tensor, Tensor]:
    """Features ``[N, D]`` as coordinates ``[N, R]`` along orthonormal axes ``[R, D]``, R the lesser of N and D.

    The optimum has no part outside the axes, and the penalty is the same in these coordinates: the problem is equal,
    smaller where images are few, and uncorrelated.
    """
    by_image = len(features) <= features.shape[1]
    products = features @ features.T if by_image else features.T @ features
    moments, vectors = (part.to(features.device) for part in torch.linalg.eigh(products.cpu()))
    if not by_image:
        return features @ vectors, vectors.T
    told = moments > 1e-12 * moments[-1]  # the rest is rounding
    lengths, vectors = moments[told].sqrt(), vectors[:, told]
    return vectors * lengths, (vectors.T @ features) / lengths[:, None]


def _choose_strength(whole: "Problem", generator: torch.Generator) -> tuple[float, float | None, float | None]:
    """The strongest penalty whose held-out loss is not above the lowest beyond chance; with that loss and the score.

    Accuracy is flat where the loss is not, and jumps by chance. The strengths are tried from the strongest down, each
    start from the one before, until one is worse than the best so far.
    """
    folds = _folds(whole, generator)
    if not folds:
        return _STRENGTH_OF_FEW, None, None
    ranked = whole._replace(features=whole.features.float())  # half the time, and strengths need only be ranked
    # Where all held-out images are right, the loss falls for ever as the penalty does. But N of them cannot tell that
    # fewer than one in N would be wrong, in each of the decisions that the loss of an image is the sum of.
    least = (1 if whole.labels.ndim == 1 else whole.num_classes) / len(whole.labels)
    tried: list[tuple[Tensor, float]] = []
    starts: list[Any] = [None] * len(folds)
    best = 0
    for place, strength in enumerate(STRENGTHS):
        starts = [
            _solve(ranked.of(~held_out), strength, TO_RANK, start)
            for held_out, start in zip(folds, starts, strict=True)
        ]
        tried.append(_held_out(ranked, folds, starts))
        if _is_worse(tried[place][0], tried[best][0], least):
            break
        best = min(range(place + 1), key=lambda one: float(tried[one][0].mean()))
    chosen = next(place for place, (losses, _) in enumerate(tried) if not _is_worse(losses, tried[best][0], least))
    losses, score = tried[chosen]
    return STRENGTHS[chosen], float(losses.mean()), score


def _is_worse(losses: Tensor, others: Tensor, least: float) -> bool:
    """Whether losses ``[N]`` of the same images are higher by more than ``least`` and than a standard error."""
    differences = losses - others
    noise = differences.std(correction=0) / len(differences) ** 0.5
    return bool(differences.mean() > noise.clamp(min=least))


def _folds(whole: "Problem", generator: torch.Generator) -> list[Tensor]:
    """Bool ``[N]`` of each fold, the images that are held out; none where nothing can be learnt from the others."""
    if len(whole.labels) < _FEWEST_TO_HOLD_OUT:
        return []
    numbers = whole.goal.folds(whole.labels, whole.num_classes, generator).to(whole.labels.device)
    folds = [numbers == number for number in range(NUM_FOLDS)]
    blank = whole.features.new_zeros(len(numbers), whole.num_classes)
    return [
        out for out in folds if whole.goal.of_learnt(blank[out], whole.labels[out], whole.labels[~out])[1].numel()
    ]


def _held_out(whole: "Problem", folds: list[Tensor], solutions: list[Tensor]) -> tuple[Tensor, float]:
    """The losses ``[N]`` of the held-out images of all folds, of what can be learnt, and the score."""
    losses, logits, labels = [], [], []
    for held_out, found in zip(folds, solutions, strict=True):
        logits.append(whole.features[held_out] @ found[:, :-1].T + found[:, -1])
        labels.append(whole.labels[held_out])
        learnt = whole.goal.of_learnt(logits[-1], labels[-1], whole.labels[~held_out])
        losses.append(whole.goal.losses(*learnt))
    return torch.cat(losses), whole.goal.score(torch.cat(logits), torch.cat(labels))


def _folds_of_labels(labels: Tensor, num_classes: int, generator: torch.Generator) -> Tensor:
    """``[N]``: a fold of each image; each class is spread over the folds evenly, and so are all images."""
    order = torch.randperm(len(labels), generator=generator)
    by_class = order[labels.cpu()[order].sort(stable=True).indices]
    folds = torch.empty(len(labels), dtype=torch.int64)
    folds[by_class] = torch.arange(len(labels)) % NUM_FOLDS
    return folds


def _folds_of_sets(labels: Tensor, num_classes: int, generator: torch.Generator) -> Tensor:
    """``[N]``: a fold of each image, for ``labels [N, num_classes]``; of each class about as many in each fold."""
    rows, places = labels.cpu().unique(dim=0, return_inverse=True)
    sets = [row.nonzero()[:, 0].tolist() for row in rows]
    seed = int(torch.randint(2**31, (), generator=generator))
    folds = torch.zeros(len(labels), dtype=torch.int64)
    left = torch.arange(len(labels))
    for number in range(NUM_FOLDS - 1, 0, -1):  # a share of what is left, so that all folds are as large
        chosen = split_label_sets(places[left].tolist(), sets, 1 / (number + 1), seed)
        folds[left[chosen]] = number
        is_left = torch.ones(len(left), dtype=torch.bool)
        is_left[chosen] = False
        left = left[is_left]
    return folds


def _images_of_learnt(logits: Tensor, labels: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """The images whose class others have as well."""
    learnt = torch.isin(labels, others)
    return logits[learnt], labels[learnt]


def _classes_of_learnt(logits: Tensor, labels: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """The classes that some of the others have and some have not."""
    learnt = others.any(0) & ~others.all(0)
    return logits[:, learnt], labels[:, learnt]


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(1) == labels).double().mean())


def _mean_average_precision(logits: Tensor, labels: Tensor) -> float:
    return mean_of_known(average_precisions(logits.cpu(), labels.cpu()))


def _cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits, labels, reduction="none")


def _sums_of_binary_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Summed over the classes, so that the penalty weighs on each regression as if it were the only one."""
    return functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none").sum(1)


GOALS: dict[TaskName, Goal] = {
    "single_label": Goal(
        _cross_entropies, _accuracy, _folds_of_labels, _images_of_learnt, lambda classes: 1 / classes, "%"
    ),
    "multi_label": Goal(
        _sums_of_binary_losses, _mean_average_precision, _folds_of_sets, _classes_of_learnt, lambda _: 1 / 4, "% mAP"
    ),
}


class Effort(NamedTuple):
    """How far a problem is solved: iterations at the most, and the gradient's largest entry at the end."""

    iterations: int
    tolerance: float


TO_RANK, TO_THE_END = Effort(100, 3e-5), Effort(1000, 1e-6)


class Problem(NamedTuple):
    """Uncorrelated features ``[N, D]`` and labels that a classifier is sought for."""

    features: Tensor
    labels: Tensor
    num_classes: int
    has_bias: bool
    goal: Goal

    def of(self, images: Tensor) -> "Problem":
        """The problem of some images, bool ``[N]``."""
        return self._replace(features=self.features[images], labels=self.labels[images])


def _solve(problem: Problem, strength: float, effort: Effort, start: Tensor | None = None) -> Tensor:
    """``[num_classes, D + 1]``: weights and, in the last column, biases, which are not penalised."""
    features, labels, num_classes, has_bias, goal = problem
    moments = torch.cat([features.square().mean(0), features.new_ones(1)])
    penalties = torch.full_like(moments, strength)
    penalties[-1] = 0
    # The unknowns are the weights times this root of the loss's curvature about 0: then all directions are as steep.
    steepness = (goal.curvature(num_classes) * moments + penalties).sqrt()
    inputs = torch.cat([features, features.new_full((len(features), 1), float(has_bias))], dim=1) / steepness
    penalties /= steepness.square()
    unknowns = features.new_zeros(num_classes, len(moments)) if start is None else start * steepness
    unknowns.requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [unknowns],
        max_iter=effort.iterations,
        history_size=20,
        line_search_fn="strong_wolfe",
        tolerance_grad=effort.tolerance,
        tolerance_change=1e-12,
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = goal.losses(inputs @ unknowns.T, labels).mean() + (penalties * unknowns.square()).sum() / 2
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return unknowns.detach() / steepness
