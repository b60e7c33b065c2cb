"""Named augmentations: from a decoded training image to uint8 ``[C, size, size]``.

A new one is a function ``(size, interpolation) -> nn.Module``, its row in ``PRESETS`` and its name in
``configs/choices.py``; ``tests/unit/data/test_augmentation.py`` runs over all rows and fails where one is missing.
Everything random has to come from torch's default generator, which the dataset seeds by the sample: with Python's or
NumPy's a run would depend on its workers. Every setting has to show in the module's repr, which is part of the key of
stored features.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import nn
from torchvision.transforms import v2

from sat_vg.backbone_finetuning.configs.choices import Augmentation
from sat_vg.backbone_finetuning.data.loading.transforms import (
    GREY,
    Elastic,
    GaussianNoise,
    RandomColours,
    RandomQuarterTurn,
    RandomScaledCrop,
    Sometimes,
)
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.preprocessing import RGB, Interpolation, Preprocessing


def crops(size: int, interpolation: str) -> nn.Module:
    """Nearly the whole image, neither mirrored nor turned, as for digits, letters and signs."""
    return RandomScaledCrop(size, interpolation, scale=(0.8, 1.0), ratio=10 / 9)


def basic(size: int, interpolation: str) -> nn.Module:
    """A scaled crop and horizontal flips, as for photographs, which have an "up"."""
    return nn.Sequential(RandomScaledCrop(size, interpolation), v2.RandomHorizontalFlip())


def satellite(size: int, interpolation: str) -> nn.Module:
    """For overhead images: mild scale, mild colour, the eight flips and turns; float32 ``[C, H, W]`` is taken too."""
    return nn.Sequential(RandomScaledCrop(size, interpolation), RandomColours(), RandomQuarterTurn())


def turns(size: int, interpolation: Interpolation) -> nn.Module:
    """One of the eight flips and quarter turns of the image as validation sees it; colours and scale stay."""
    return nn.Sequential(Preprocessing(image_size=size, interpolation=interpolation).geometry(), RandomQuarterTurn())


def _policy(operations: type[nn.Module]) -> Callable[[int, Interpolation], nn.Module]:
    """A published policy of random operations, after a scaled crop and a quarter turn."""

    def build(size: int, interpolation: Interpolation) -> nn.Module:
        policy = operations(interpolation=v2.InterpolationMode.BILINEAR, fill=GREY)
        return nn.Sequential(RandomScaledCrop(size, interpolation), RandomQuarterTurn(), policy)

    return build


def advanced(size: int, interpolation: str) -> nn.Module:
    """The changes of ``satellite``, and sometimes affine and elastic changes, blur and noise."""
    affine = v2.RandomAffine(
        degrees=20,
        translate=(0.1, 0.1),
        scale=(0.9, 1.1),
        shear=10,
        interpolation=v2.InterpolationMode.BILINEAR,
        fill=GREY,
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


class Preset(NamedTuple):
    """One augmentation."""

    build: Callable[[int, Interpolation], nn.Module]  # image size and interpolation → the transform
    # whether it takes the float32 values of any number of bands; else 8-bit red, green and blue alone
    any_bands: bool


PRESETS: dict[Augmentation, Preset] = {
    "satellite": Preset(satellite, any_bands=True),
    "turns": Preset(turns, any_bands=True),
    "crops": Preset(crops, any_bands=True),
    "basic": Preset(basic, any_bands=True),
    # Two operations of fourteen, at magnitude 9 of 30 (Cubuk et al., 2020)
    "randaugment": Preset(_policy(v2.RandAugment), any_bands=False),
    # One operation of fourteen, at a random magnitude (Müller & Hutter, 2021)
    "trivialaugment": Preset(_policy(v2.TrivialAugmentWide), any_bands=False),
    # One of 25 pairs of operations found on ImageNet (Cubuk et al., 2019)
    "autoaugment": Preset(_policy(v2.AutoAugment), any_bands=False),
    "advanced": Preset(advanced, any_bands=False),
}


def augmentation_of(name: Augmentation, preprocessing: Preprocessing, crop_scale: float | None = None) -> nn.Module:
    """Build a preset for images that are preprocessed so; ``crop_scale``: another least share of area for its crops.

    Raises:
        ConfigError: it has operations on red, green and blue in 256 steps, and the images hold something else.
    """
    is_rgb = preprocessing.bands == RGB and preprocessing.files is None
    if not is_rgb and not PRESETS[name].any_bands:
        raise ConfigError(
            f"augmentation = {name!r}: has operations for 8-bit red, green and blue, and the images hold values of "
            f"other bands or types ({', '.join(preprocessing.bands)}); use "
            f"{', '.join(name for name, preset in PRESETS.items() if preset.any_bands)} or none"
        )
    built = PRESETS[name].build(preprocessing.image_size, preprocessing.interpolation)
    for module in built.modules():
        if isinstance(module, RandomScaledCrop) and crop_scale is not None:
            module.scale = (crop_scale, 1.0)
    return built
