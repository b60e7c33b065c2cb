"""Mixup and CutMix on the device, as a pure function of (seed, step).

Each image is mixed with its neighbour in the batch, (0, 1), (2, 3) …: the order is shuffled anew every epoch, so
this pairs at random, and a batch can be cut into even parts, for accumulation or over processes, without
changing what is mixed with what.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sat_vg.backbone_finetuning.utils.seeding import Purpose, derive_seed, numpy_generator


@dataclass(frozen=True)
class Mixing:
    """Which mixing is done; with both alphas at 0 it hands everything through."""

    mixup_alpha: float  # Beta parameter of Mixup (Zhang et al., 2018); 0: off
    cutmix_alpha: float  # Beta parameter of CutMix (Yun et al., 2019); 0: off. With both on each step draws one.
    seed: int  # the run's seed

    def __call__(self, images: Tensor, targets: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Mix normalised images ``[B, C, H, W]`` and their targets ``[B, num_classes]``."""
        if self.mixup_alpha == 0 and self.cutmix_alpha == 0:
            return images, targets
        generator = numpy_generator(derive_seed(self.seed, Purpose.MIXING, step))
        uses_cutmix = self.cutmix_alpha > 0 and (self.mixup_alpha == 0 or generator.random() < 0.5)
        alpha = self.cutmix_alpha if uses_cutmix else self.mixup_alpha
        share = float(generator.beta(alpha, alpha))
        partners = neighbours(len(images), images.device)
        if uses_cutmix:
            images, share = _paste_box(images, images[partners], share, generator)
        else:
            images = images.mul(share).add_(images[partners], alpha=1 - share)
        return images, targets.mul(share).add_(targets[partners], alpha=1 - share)


def neighbours(count: int, device: torch.device) -> Tensor:
    """``[1, 0, 3, 2, …]``; the last of an odd number stays by itself."""
    return (torch.arange(count, device=device) ^ 1).clamp_(max=count - 1)


def _paste_box(images: Tensor, others: Tensor, share: float, generator: np.random.Generator) -> tuple[Tensor, float]:
    """Paste a box of the others' pixels; returns the share of own pixels that is really left."""
    height, width = images.shape[-2:]
    side = (1 - share) ** 0.5
    centre_y, centre_x = generator.integers(height), generator.integers(width)
    top, bottom = (int(np.clip(centre_y + sign * side * height / 2, 0, height)) for sign in (-1, 1))
    left, right = (int(np.clip(centre_x + sign * side * width / 2, 0, width)) for sign in (-1, 1))
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = others[..., top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)
