"""Checks of what is passed to a backbone: normalised images as one tensor."""

import torch
from torch import Tensor, nn

from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.preprocessing import Preprocessing


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
    return values if preprocessing.files is None else torch.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)


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
