"""What is minimised: ``(logits, targets) ->`` loss, summed over the batch, in fp32.

A loss is an object that is called; the loop knows no more of it. Targets are rows of shares, so hard labels, Mixup
and several classes an image go the same way. A new term of a loss is a field of its class and of ``FinetuneConfig``;
a new loss is a class and its line in ``LOSSES``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from sat_vg.backbone_finetuning.configs.choices import ClassWeights
from sat_vg.backbone_finetuning.models.probabilities import TaskName

Loss = Callable[[Tensor, Tensor], Tensor]
_EFFECTIVE_BETA = 0.999
_LEAST_SHARE = 1e-8  # a power below 1 of nothing has no gradient


@dataclass(frozen=True, eq=False)
class CrossEntropy:
    """Cross-entropy against distributions over the classes: one class an image.

    Attributes:
        label_smoothing: share spread over all classes (Szegedy et al., 2016).
        class_weights: factor on each class's part, ``[num_classes]``, on the device of the logits; None: 1.
        focal_gamma: the exponent of focal loss, which weighs each part by ``(1 - p) ** gamma`` (Lin et al., 2017).
    """

    label_smoothing: float = 0.0
    class_weights: Tensor | None = None
    focal_gamma: float = 0.0

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Logits and targets ``[B, num_classes]`` → the sum over the batch."""
        logits = logits.float()
        if self.focal_gamma:
            # Smoothed first: what smoothing adds is weighed like everything else.
            targets = targets * (1 - self.label_smoothing) + self.label_smoothing / targets.shape[1]
            targets = targets * (1 - logits.softmax(1)).clamp_min(_LEAST_SHARE) ** self.focal_gamma
        return functional.cross_entropy(
            logits,
            targets,
            weight=self.class_weights,
            reduction="sum",
            label_smoothing=0.0 if self.focal_gamma else self.label_smoothing,
        )


@dataclass(frozen=True, eq=False)
class BinaryCrossEntropy:
    """Mean over the classes of each one's binary cross-entropy: any number of classes an image.

    Attributes:
        label_smoothing: how far targets are drawn towards a half.
        class_weights: factor on the images that have the class, ``[num_classes]``, on the device of the logits; None:
            1.
        focal_gamma: the exponent of focal loss (Lin et al., 2017).
    """

    label_smoothing: float = 0.0
    class_weights: Tensor | None = None
    focal_gamma: float = 0.0

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Logits and targets ``[B, num_classes]`` → the sum over the batch."""
        logits = logits.float()
        targets = targets * (1 - self.label_smoothing) + self.label_smoothing / 2
        losses = functional.binary_cross_entropy_with_logits(
            logits, targets, pos_weight=self.class_weights, reduction="none"
        )
        if self.focal_gamma:
            shares = logits.sigmoid()
            missed = targets * (1 - shares) + (1 - targets) * shares
            losses = losses * missed.clamp_min(_LEAST_SHARE) ** self.focal_gamma
        return losses.sum() / targets.shape[1]


def weights_of_classes(
    kind: ClassWeights, counts: Sequence[int], num_images: int, is_multi_label: bool
) -> Tensor | None:
    """Factors on the classes' losses, so that rare classes count for more.

    For one class an image they are scaled so that the mean over the training images is 1 and the learning rate keeps
    its meaning.

    Args:
        kind: ``balanced``: by the inverse of the counts (King & Zeng, 2001); ``effective``: by the inverse of the
            effective number of images, with beta = 0.999 (Cui et al., 2019), which is milder; ``none``.
        counts: training images of each class.
        num_images: in training.
        is_multi_label: weigh the images that have a class against those that lack it.

    Returns:
        float32 ``[num_classes]``; None for ``none``.
    """
    size = CLASS_SIZES[kind]
    if size is None:
        return None
    present = torch.tensor(counts, dtype=torch.float64).clamp_min(1)
    if is_multi_label:
        lacking = (num_images - present).clamp_min(1)
        return (size(lacking) / size(present)).float()
    weights = 1 / size(present)
    mean = (weights * torch.tensor(counts, dtype=torch.float64)).sum() / num_images
    return (weights / mean).float()


def _effective(counts: Tensor) -> Tensor:
    return (1 - _EFFECTIVE_BETA**counts) / (1 - _EFFECTIVE_BETA)


# Each field is a setting of the same name; class_weights arrive as numbers.
LOSSES: dict[TaskName, type[CrossEntropy] | type[BinaryCrossEntropy]] = {
    "single_label": CrossEntropy,
    "multi_label": BinaryCrossEntropy,
}

# Numbers of images, float64 → the sizes by whose inverse classes are weighted; None: classes are not weighted.
CLASS_SIZES: dict[ClassWeights, Callable[[Tensor], Tensor] | None] = {
    "none": None,
    "balanced": lambda counts: counts,
    "effective": _effective,
}
