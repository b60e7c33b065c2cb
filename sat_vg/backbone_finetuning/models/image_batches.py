"""Checks of what is passed to a backbone: normalised images as one tensor."""

import torch
from torch import Tensor, nn

from sat_vg.backbone_finetuning.utils.errors import ConfigError, UserError
from sat_vg.backbone_finetuning.utils.preprocessing import Preprocessing

_NO_FRACTION = 50.0  # values with such a mean are no share of 1
_SAMPLED = 32  # rows and columns of pixels that are looked at, or up to twice as many
_FARTHEST = 1000.0  # deviations from the mean, beyond which values of files are taken for missing


def require_batch(images: object, num_channels: int) -> None:
    """Refuse what is no batch ``[B, num_channels, H, W]``."""
    if not isinstance(images, Tensor):
        raise ConfigError(
            f"images are of type {type(images).__name__}: give a tensor [B, {num_channels}, H, W]; of an array "
            "[H, W, C] it is torch.from_numpy(array).permute(2, 0, 1)[None], of a PIL image transforms()(image)[None]"
        )
    if images.ndim != 4 or images.shape[1] != num_channels:
        raise ConfigError(
            f"images of shape {list(images.shape)}: give a batch [B, {num_channels}, H, W]; of a single image "
            f"[{num_channels}, H, W] make one by images[None]"
        )


def normalise_and_fill(preprocessing: Preprocessing, pixels: Tensor) -> Tensor:
    """As ``preprocessing.normalise``; of GeoTIFFs, values that are no numbers become the mean, as in training."""
    values = preprocessing.normalise(pixels)
    if preprocessing.files is None:
        return values
    if not torch.compiler.is_compiling():
        step = max(1, min(pixels.shape[-2:]) // _SAMPLED)
        _require_units(preprocessing, *(one[..., ::step, ::step].reshape(-1) for one in (pixels, values)))
    return torch.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)


def _require_units(preprocessing: Preprocessing, pixels: Tensor, normalised: Tensor) -> None:
    """Refuse images that are all in other units than the training's: fractions of 1, or far from all its values."""
    mean = [preprocessing.scale * one for one in preprocessing.mean]
    pixels, normalised = pixels.cpu().double(), normalised.cpu().double()  # MPS has no double
    there = torch.isfinite(pixels)
    if not bool(there.any()):
        return
    given = pixels[there]
    low, high = given.min().item(), given.max().item()
    are_fractions = low >= 0 and high <= 1 and bool((given % 1 != 0).any())
    if (are_fractions and min(mean) > _NO_FRACTION) or bool((normalised[there].abs() > _FARTHEST).all()):
        raise UserError(
            f"images with values from {low:.5g} to {high:.5g}: in the training the bands "
            f"{', '.join(preprocessing.bands)} had the means {', '.join(f'{one:.5g}' for one in mean)}, so these are "
            "in other units. Give the values as they stand in the files, with the scale and offset of their tags "
            "applied where there are any"
        )


def require_normalised(images: object, num_channels: int, network: nn.Module) -> None:
    """Refuse what is no batch of normalised images in the type of the network's weights; the values are not read."""
    require_batch(images, num_channels)
    assert isinstance(images, Tensor)
    if not images.is_floating_point():
        raise ConfigError(
            f"images of type {images.dtype}: the backbone takes normalised ones; pass normalise(images), a method of "
            "the extractor and of model.preprocessing"
        )
    # A tracer takes one type and compiles for it. Autocast and FSDP convert the weights by themselves.
    device = images.device.type
    if torch.compiler.is_compiling() or (
        torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)  # the meta device knows none
    ):
        return
    weight = next(network.parameters(), None)
    is_plain = weight is not None and weight.is_floating_point() and not hasattr(weight, "_is_flat_param")
    if is_plain and weight is not None and weight.dtype != images.dtype:
        raise ConfigError(
            f"images of type {images.dtype}: the weights are {weight.dtype}; pass images.to({weight.dtype}), or run "
            "under torch.autocast"
        )
