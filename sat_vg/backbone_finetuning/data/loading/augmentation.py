"""Named augmentations: from a decoded training image to uint8 ``[C, size, size]``.

A preset is a function ``(size, interpolation) -> nn.Module``; a new one is a function here, its line in
``PRESETS``, and its name in ``configs/choices.py``.
All that it draws has to come from torch's default generator, which the dataset seeds by the sample: with Python's or
NumPy's a run would depend on its workers. What it does has to show in the module's repr, which is part of the key of
what is kept of frozen stages.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import v2

from sat_vg.backbone_finetuning.configs.choices import AUGMENTATIONS_OF_ANY_BANDS, Augmentation
from sat_vg.backbone_finetuning.data.loading.transforms import (
    RandomColours,
    RandomQuarterTurn,
    RandomScaledCrop,
    training_transform,
)
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.preprocessing import RGB, Interpolation, Preprocessing

_GREY = 128  # where an image is moved away from, as in the papers' own code; black would be an edge to learn from


class Sometimes(nn.Module):
    """Does something with a probability.

    Args:
        probability: of doing it.
        change: ``[C, H, W]`` → the same shape.
    """

    def __init__(self, probability: float, change: nn.Module) -> None:
        super().__init__()
        self.probability, self.change = probability, change

    def forward(self, image: Tensor) -> Tensor:
        """``[C, H, W]`` → the same shape."""
        changed: Tensor = self.change(image) if float(torch.rand(())) < self.probability else image
        return changed

    def extra_repr(self) -> str:
        """The settings; torchvision's ``RandomApply`` leaves its probability out."""
        return f"probability={self.probability}"


class Elastic(nn.Module):
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
        moved: Tensor = v2.functional.elastic(image, field.permute(0, 2, 3, 1), fill=[float(_GREY)])
        return moved

    def extra_repr(self) -> str:
        """The settings."""
        return f"shift={self.shift}, places={self.places}"


class GaussianNoise(nn.Module):
    """Adds noise to every pixel and band by itself; torchvision's takes uint8 in its later versions only.

    Args:
        deviation: of the noise, as a share of the largest value.
    """

    def __init__(self, deviation: float) -> None:
        super().__init__()
        self.deviation = deviation

    def forward(self, image: Tensor) -> Tensor:
        """uint8 ``[C, H, W]`` → the same shape."""
        noise = torch.randn(image.shape).mul_(255 * self.deviation)
        return noise.add_(image).round_().clamp_(0, 255).to(torch.uint8)

    def extra_repr(self) -> str:
        """The settings."""
        return f"deviation={self.deviation}"


def crops(size: int, interpolation: str) -> nn.Module:
    """Nearly the whole image, neither mirrored nor turned, as for digits, letters and signs."""
    return RandomScaledCrop(size, interpolation, scale=(0.8, 1.0), ratio=10 / 9)


def basic(size: int, interpolation: str) -> nn.Module:
    """A scaled crop and horizontal flips, as for photographs, which have an "up"."""
    return nn.Sequential(RandomScaledCrop(size, interpolation), v2.RandomHorizontalFlip())


def turns(size: int, interpolation: Interpolation) -> nn.Module:
    """One of the eight flips and quarter turns of what validation sees; colours and scale stay as they are."""
    return nn.Sequential(Preprocessing(image_size=size, interpolation=interpolation).geometry(), RandomQuarterTurn())


def randaugment(size: int, interpolation: str) -> nn.Module:
    """Two operations out of fourteen, at magnitude 9 of 30 (Cubuk et al., 2020)."""
    return _after_crop_and_turn(size, interpolation, v2.RandAugment)


def trivialaugment(size: int, interpolation: str) -> nn.Module:
    """One operation out of fourteen, at a magnitude of its own for each image (Müller & Hutter, 2021)."""
    return _after_crop_and_turn(size, interpolation, v2.TrivialAugmentWide)


def autoaugment(size: int, interpolation: str) -> nn.Module:
    """One of 25 pairs of operations that were found on ImageNet (Cubuk et al., 2019)."""
    return _after_crop_and_turn(size, interpolation, v2.AutoAugment)


def _after_crop_and_turn(size: int, interpolation: str, policy: Callable[..., nn.Module]) -> nn.Module:
    operations = policy(interpolation=v2.InterpolationMode.BILINEAR, fill=_GREY)
    return nn.Sequential(RandomScaledCrop(size, interpolation), RandomQuarterTurn(), operations)


def advanced(size: int, interpolation: str) -> nn.Module:
    """What ``satellite`` does, and sometimes affine and elastic changes, blur and noise."""
    affine = v2.RandomAffine(
        degrees=20,
        translate=(0.1, 0.1),
        scale=(0.9, 1.1),
        shear=10,
        interpolation=v2.InterpolationMode.BILINEAR,
        fill=_GREY,
    )
    blur = v2.GaussianBlur(kernel_size=7, sigma=(0.4, max(0.6, min(1.5, size / 75))))
    return nn.Sequential(
        RandomScaledCrop(size, interpolation),
        RandomColours(),
        RandomQuarterTurn(),
        Sometimes(0.5, affine),
        Sometimes(0.25, Elastic(shift=0.025, places=6)),
        Sometimes(0.25, blur),
        Sometimes(0.25, GaussianNoise(0.04)),
    )


PRESETS: dict[Augmentation, Callable[[int, Interpolation], nn.Module]] = {
    "crops": crops,
    "basic": basic,
    "satellite": training_transform,
    "turns": turns,
    "randaugment": randaugment,
    "trivialaugment": trivialaugment,
    "autoaugment": autoaugment,
    "advanced": advanced,
}


def augmentation_of(name: Augmentation, preprocessing: Preprocessing) -> nn.Module:
    """The preset of a name for images that are preprocessed so.

    Raises:
        ConfigError: it has operations on red, green and blue in 256 steps, and the images hold something else.
    """
    is_rgb = preprocessing.bands == RGB and preprocessing.files is None
    if not is_rgb and name not in AUGMENTATIONS_OF_ANY_BANDS:
        raise ConfigError(
            f"augmentation = {name!r}: has operations for 8-bit red, green and blue, and the images hold values of "
            f"other bands or types ({', '.join(preprocessing.bands)}); use "
            f"{', '.join(AUGMENTATIONS_OF_ANY_BANDS)} or none"
        )
    return PRESETS[name](preprocessing.image_size, preprocessing.interpolation)
