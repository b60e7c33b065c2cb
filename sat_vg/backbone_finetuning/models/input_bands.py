"""Images with other bands than red, green, blue: the first convolution, carried over from RGB weights."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from sat_vg.backbone_finetuning.models.stages import Stage
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.preprocessing import RGB


def choose_bands(in_channels: int | None, bands: Sequence[str] | None) -> tuple[str, ...]:
    """The names of the input's channels: ``bands``, or red, green, blue, or ``gray`` for a single one.

    Raises:
        ConfigError: names are missing, double, or not as many as ``in_channels`` says.
    """
    if bands is None:
        if in_channels in (None, len(RGB)):
            return RGB
        if in_channels == 1:
            return ("gray",)
        raise ConfigError(
            f"in_channels = {in_channels}: say which bands these are, in order, so that red, green and blue get "
            'their own weights; for example bands=("red", "green", "blue", "nir")'
        )
    names = tuple(bands)
    if not names or len(set(names)) != len(names) or in_channels not in (None, len(names)):
        raise ConfigError(
            f"bands = {names!r} with in_channels = {in_channels}: name every channel once, in the order of the images"
        )
    return names


def inflate_rgb(weight: Tensor, bands: Sequence[str]) -> Tensor:
    """First-layer weights ``[out, len(bands), height, width]`` from those for red, green, blue.

    A band named red, green or blue keeps that colour's weights, wherever it stands; every other band starts from the
    mean of the three (Carreira & Zisserman, 2017, inflate along time by the same reasoning). All are scaled by
    ``3 / bands``, so that an input which is the same in all channels gives what it gave before.
    """
    colours = dict(zip(RGB, weight.unbind(1), strict=True))
    mean = weight.mean(dim=1)
    inflated = torch.stack([colours.get(band, mean) for band in bands], dim=1)
    return inflated * (len(RGB) / len(bands)) if len(bands) != len(RGB) else inflated


def of_bands(rgb: Sequence[float], bands: Iterable[str]) -> tuple[float, ...]:
    """A number per band from one per colour; bands that are no colour get the colours' mean."""
    colours = dict(zip(RGB, rgb, strict=True))
    return tuple(colours.get(band, sum(rgb) / len(RGB)) for band in bands)


def first_convolution(network: nn.Module, stages: Sequence[Stage]) -> tuple[str, nn.Conv2d]:
    """The dotted name of the convolution that takes the image, and the convolution itself."""
    own = {id(module) for module in stages[0].modules(network)}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and id(module) in own:
            return name, module
    raise ConfigError(f"the first stage, {stages[0].name}, has no convolution whose input could be changed")


def take_bands(network: nn.Module, stages: Sequence[Stage], bands: Sequence[str]) -> None:
    """Give ``network`` a first convolution for ``bands``, with the inflated weights of its RGB one."""
    if tuple(bands) == RGB:
        return
    _, convolution = first_convolution(network, stages)
    with torch.no_grad():
        convolution.weight = nn.Parameter(inflate_rgb(convolution.weight, bands))
    convolution.in_channels = len(bands)
