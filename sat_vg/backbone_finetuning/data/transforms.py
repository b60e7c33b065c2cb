"""Transforms from a decoded image to a training image, on uint8 throughout."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.transforms import v2


class RandomQuarterTurn(nn.Module):
    """One of the eight flips and quarter turns of a square, all equally likely: overhead images have no "up"."""

    def forward(self, image: Tensor) -> Tensor:
        """``[C, S, S]`` → the same shape."""
        choice = int(torch.randint(8, ()))
        turned = torch.rot90(image, choice % 4, dims=(-2, -1))
        return turned.flip(-1) if choice >= 4 else turned


def training_transform(image_size: int, interpolation: str) -> nn.Module:
    """Augmentation for overhead images: mild scale, the eight flips and turns, mild colour.

    uint8 ``[C, H, W]`` of any size → uint8 ``[C, image_size, image_size]``; random numbers come from torch's
    default generator, which the dataset seeds by the sample.
    """
    steps: list[Any] = [
        v2.RandomResizedCrop(
            image_size, scale=(0.5, 1.0), interpolation=v2.InterpolationMode(interpolation), antialias=True
        ),
        RandomQuarterTurn(),
        v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
    ]
    return cast(nn.Module, v2.Compose(steps))
