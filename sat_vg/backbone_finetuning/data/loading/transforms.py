"""Random changes of a decoded image, on uint8 throughout; ``augmentation.py`` puts them together.

Each draws its random numbers from torch's default generator, which the dataset seeds by the sample, all at once: for
images of 64 pixels a call costs as much as the work.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import v2

GREY = 128  # where an image is moved away from, as in the papers' own code; black would be an edge to learn from
_LUMA = torch.tensor([0.299, 0.587, 0.114])  # ITU-R BT.601
_IDENTITY = torch.eye(3)


class RandomChange(nn.Module):
    """A change of an image whose settings, its public attributes, stand in its repr."""

    def extra_repr(self) -> str:
        """The settings."""
        shown = {name: value for name, value in vars(self).items() if not name.startswith("_") and name != "training"}
        return ", ".join(f"{name}={value}" for name, value in shown.items())


class RandomScaledCrop(RandomChange):
    """A part of random size, shape and place, resized to a square (Szegedy et al., 2015).

    Args:
        size: of the result, in pixels.
        interpolation: ``bilinear`` or ``bicubic``; always with antialiasing.
        scale: smallest and largest share of the image's area.
        ratio: largest width to height, and the other way round; what would not fit into the image is cut to it.
    """

    def __init__(
        self, size: int, interpolation: str, scale: tuple[float, float] = (0.5, 1.0), ratio: float = 4 / 3
    ) -> None:
        super().__init__()
        self.size, self.interpolation, self.scale, self.ratio = size, interpolation, scale, ratio

    def forward(self, image: Tensor) -> Tensor:
        """``[C, H, W]`` → ``[C, size, size]``."""
        height, width = image.shape[-2:]
        for_area, for_shape, down, right = torch.rand(4).tolist()
        area = height * width * (self.scale[0] + (self.scale[1] - self.scale[0]) * for_area)
        root_of_shape = math.exp((for_shape - 0.5) * math.log(self.ratio))
        part_height = max(1, min(height, round(math.sqrt(area) / root_of_shape)))
        part_width = max(1, min(width, round(math.sqrt(area) * root_of_shape)))
        top, left = round(down * (height - part_height)), round(right * (width - part_width))
        part = image[:, top : top + part_height, left : left + part_width]
        if part.shape[-2:] == (self.size, self.size):
            return part
        resized = functional.interpolate(part[None], (self.size, self.size), mode=self.interpolation, antialias=True)
        return resized[0]

    def extra_repr(self) -> str:
        """The settings."""
        return f"size={self.size}, interpolation={self.interpolation}, scale={self.scale}, ratio={self.ratio:.4f}"


class RandomColours(RandomChange):
    """Brightness, contrast and saturation times factors from ``1 - strength`` to ``1 + strength``.

    The three are linear maps of a pixel's colour, so they are done as one, and values are cut to 0 … 255 only at the
    end; torchvision's ``ColorJitter`` cuts and rounds after each and takes three to four times as long.

    Values of GeoTIFFs (float32) have other units and no largest value, and their bands no common grey. There,
    contrast is changed about each band's own mean, and brightness by up to ``strength`` times each band's own
    deviation, both by the same factors in all bands.

    Args:
        strength: below 1.
    """

    def __init__(self, strength: float = 0.2) -> None:
        super().__init__()
        self.strength = strength

    def forward(self, image: Tensor) -> Tensor:
        """RGB uint8 ``[3, H, W]``, or float32 ``[C, H, W]`` → the same shape, contiguous."""
        factors = torch.rand(3).mul_(2 * self.strength).add_(1 - self.strength)
        brightness, contrast, saturation = factors.tolist()
        if image.is_floating_point():
            deviation, mean = torch.std_mean(image, dim=(1, 2), keepdim=True, correction=0)
            return (image - mean).mul_(contrast).add_(mean + (brightness - 1) * deviation)
        colours = image.contiguous().view(3, -1).float()
        to_grey = float(_LUMA @ colours.mean(1))
        change = (brightness * contrast) * (saturation * _IDENTITY + (1 - saturation) * _LUMA)
        shift = brightness * (1 - contrast) * to_grey + 0.5  # the half is for rounding
        changed: Tensor = (change @ colours).add_(shift).clamp_(0, 255)
        return changed.to(torch.uint8).view(image.shape)


class RandomQuarterTurn(nn.Module):
    """One of the eight flips and quarter turns of a square, all equally likely: overhead images have no "up"."""

    def forward(self, image: Tensor) -> Tensor:
        """``[C, S, S]`` → the same shape."""
        choice = int(torch.randint(8, ()))
        turned = image.transpose(-2, -1) if choice & 1 else image
        dims = [dim for dim, bit in ((-1, 2), (-2, 4)) if choice & bit]
        return turned.flip(dims) if dims else turned


class Sometimes(RandomChange):
    """Does something with a probability, which torchvision's ``RandomApply`` leaves out of its repr."""

    def __init__(self, probability: float, change: nn.Module) -> None:
        super().__init__()
        self.probability, self.change = probability, change

    def forward(self, image: Tensor) -> Tensor:
        """``[C, H, W]`` → the same shape."""
        changed: Tensor = self.change(image) if float(torch.rand(())) < self.probability else image
        return changed


class Elastic(RandomChange):
    """Moves pixels by a smooth random field (Simard et al., 2003).

    The field is drawn for a few places and interpolated. Torchvision's ``ElasticTransform`` smooths one that is drawn
    for every pixel, which takes many times as long (45 and not 3 ms for an image of 128 pixels).

    Args:
        shift: the most that a place is moved along each axis, as a share of the image's side.
        places: along each side.
    """

    def __init__(self, shift: float, places: int) -> None:
        super().__init__()
        self.shift, self.places = shift, places

    def forward(self, image: Tensor) -> Tensor:
        """``[C, H, W]`` → the same shape."""
        drawn = torch.rand(1, 2, self.places, self.places).mul_(2).sub_(1)
        # Between -1 and 1 lies the whole side.
        field = functional.interpolate(drawn.mul_(2 * self.shift), image.shape[-2:], mode="bicubic")
        moved: Tensor = v2.functional.elastic(image, field.permute(0, 2, 3, 1), fill=[float(GREY)])
        return moved


class GaussianNoise(RandomChange):
    """Adds noise to every pixel and band by itself; torchvision's takes uint8 in its later versions only.

    Args:
        deviation: of the noise, as a share of the largest value; of float32 values, which have none, of each band's
            own deviation.
    """

    def __init__(self, deviation: float) -> None:
        super().__init__()
        self.deviation = deviation

    def forward(self, image: Tensor) -> Tensor:
        """uint8 or float32 ``[C, H, W]`` → the same shape and type."""
        if image.is_floating_point():
            return image + torch.randn(image.shape) * self.deviation * image.std((1, 2), keepdim=True, correction=0)
        noise = torch.randn(image.shape).mul_(255 * self.deviation)
        return noise.add_(image).round_().clamp_(0, 255).to(torch.uint8)
