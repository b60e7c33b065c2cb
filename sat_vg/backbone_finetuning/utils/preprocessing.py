"""The preprocessing that belongs to a set of weights: geometry on uint8, then normalisation."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from sat_vg.backbone_finetuning.utils.errors import CheckpointError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
RGB = ("red", "green", "blue")
_MAX_IMAGE_SIZE = 4096  # as in the configuration


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image becomes the backbone's input. Plain data, stored with the weights.

    Attributes:
        image_size: height and width in pixels after resizing and cropping.
        mean: per-channel mean of images scaled to [0, 1].
        std: per-channel standard deviation of images scaled to [0, 1].
        interpolation: how images are resized; always with antialiasing.
        bands: what the channels are, in order.
    """

    image_size: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    bands: tuple[str, ...] = RGB

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocessing":
        """Restore what ``to_dict`` gave.

        Raises:
            CheckpointError: the values are not such; a file that they came from is altered.
        """
        try:
            plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
            restored = cls(**plain)
            sound = (
                isinstance(restored.image_size, int)
                and 1 <= restored.image_size <= _MAX_IMAGE_SIZE
                and len(restored.mean) == len(restored.std) == len(restored.bands)
                and all(math.isfinite(value) for value in restored.mean)
                and all(math.isfinite(value) and value > 0 for value in restored.std)
                and restored.interpolation in ("bilinear", "bicubic")
                and all(isinstance(band, str) for band in restored.bands)
            )
        except (TypeError, AttributeError, ValueError, OverflowError):
            sound = False
        if not sound:
            raise CheckpointError("the stored preprocessing is not sound: the file is altered; use another one")
        return restored

    def to_dict(self) -> dict[str, Any]:
        """Plain data: numbers, strings and lists."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    def geometry(self) -> nn.Module:
        """uint8 ``[C, H, W]`` of any size → uint8 ``[C, image_size, image_size]``.

        The shorter side is resized to ``image_size`` and the centre is cut out, so a square image is kept whole.
        """
        steps = v2.Compose(
            [
                MiddleOfLong(),
                v2.Resize(self.image_size, interpolation=v2.InterpolationMode(self.interpolation), antialias=True),
                v2.CenterCrop(self.image_size),
            ]
        )
        return cast(nn.Module, steps)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 ``[B, C, H, W]`` → float32 of the same shape with the weights' mean and deviation removed."""
        mean, scale = _constants(self.mean, self.std, images.device)
        return images.float().sub_(mean).mul_(scale)

    def transforms(self) -> nn.Module:
        """A PIL image or uint8 tensor ``[C, H, W]`` → float32 ``[C, image_size, image_size]``, normalised."""
        # Grey and CMYK images become RGB; other bands are taken as they are.
        first = [v2.RGB()] if self.bands == RGB else []
        return cast(nn.Module, v2.Compose([*first, v2.PILToTensor(), self.geometry(), v2.Lambda(_Normalise(self))]))


class MiddleOfLong(nn.Module):
    """The middle of an image that is more than eight times as long as wide; any other image as it is.

    Resizing a line of 30 000 x 1 pixels to a width of 224 would take 4.5 GB, of which the crop keeps the middle.
    """

    def forward(self, image: Tensor) -> Tensor:
        """``[C, H, W]`` → a part of it, without a copy."""
        height, width = image.shape[-2:]
        longest = 8 * min(height, width)
        if max(height, width) <= longest:
            return image
        dim = -2 if height > width else -1
        return image.narrow(dim, (image.shape[dim] - longest) // 2, longest)


@lru_cache(maxsize=32)
def _constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    # Made once per device: a copy from the host in every step would make the host wait for the device.
    with torch.inference_mode(False):
        as_column = [torch.tensor(values, device=device).mul(255).view(-1, 1, 1) for values in (mean, std)]
        return as_column[0], as_column[1].reciprocal()


@dataclass(frozen=True)
class _Normalise:
    """``Preprocessing.normalise`` as an object, so that the transform can be pickled."""

    preprocessing: Preprocessing

    def __call__(self, image: Tensor) -> Tensor:
        return self.preprocessing.normalise(image)
