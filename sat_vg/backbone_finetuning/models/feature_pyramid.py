"""SimpleFeaturePyramid: four resolutions out of the one that a plain ViT has (ViTDet: Li et al., 2022)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d

from sat_vg.backbone_finetuning.models.feature_extractor import FeatureExtractor
from sat_vg.backbone_finetuning.utils.errors import ConfigError

# Resolution of each map, relative to the extractor's.
_SCALES = {"p2": 4.0, "p3": 2.0, "p4": 1.0, "p5": 0.5}


class SimpleFeaturePyramid(nn.Module):
    """Maps at ×4, ×2, ×1 and ×½ of the resolution of an extractor's last map (Li et al., 2022, section 3).

    Its own layers start from random values: nothing in ``best_model.pt`` is for them, the consumer trains them.
    With patches of 16 pixels the strides are 4, 8, 16 and 32; with 32 pixels 8, 16, 32 and 64; with 14 pixels
    3.5, 7, 14 and 28: the maps are not resampled, and the first stride is a float. The names say the place in the
    pyramid, whatever the strides. A grid of an odd number of patches is halved rounding up, so no patch is lost.
    It has the extractor's attributes that adapters use, and ``untrained``: True.

    Args:
        extractor: with one stride; if it gives several maps, the last one is taken.
        channels: of every map.

    Raises:
        ConfigError: the extractor has several strides, or ``channels`` is not positive.
    """

    untrained = True

    def __init__(self, extractor: FeatureExtractor, channels: int = 256) -> None:
        super().__init__()
        if len(set(extractor.strides)) > 1:
            raise ConfigError(
                f"extractor of {extractor.backbone} has strides {extractor.strides}: SimpleFeaturePyramid is for one "
                "stride. Use its maps as they are (as_torchvision puts an FPN on them), or take one map, such as "
                f"get_feature_extractor(out_names=[{extractor.out_names[-1]!r}])"
            )
        if channels < 1:
            raise ConfigError(f"channels = {channels}: a map needs at least 1; the usual value is 256")
        self.extractor = extractor
        self.out_names = tuple(_SCALES)
        self.channels = (channels,) * len(_SCALES)
        self.strides = tuple(_whole(extractor.strides[-1] / scale) for scale in _SCALES.values())
        self.num_channels = channels
        self.size_divisibility = extractor.size_divisibility
        self.mean, self.std, self.in_channels = extractor.mean, extractor.std, extractor.in_channels
        self.branches = nn.ModuleDict(
            {name: _branch(scale, extractor.num_channels, channels) for name, scale in _SCALES.items()}
        )
        reference = next(extractor.parameters())
        self.branches.to(device=reference.device, dtype=reference.dtype)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Feature maps of normalised images ``[B, C, H, W]`` of any size, padded as the extractor pads them.

        Returns:
            ``[B, channels, h, w]`` by name, in falling order of resolution.
        """
        features = self.extractor(images)[self.extractor.out_names[-1]]
        return OrderedDict((name, branch(features)) for name, branch in self.branches.items())

    def forward_with_mask(self, images: Tensor, mask: Tensor | None) -> OrderedDict[str, tuple[Tensor, Tensor]]:
        """Feature maps with the mask of padding at each map's size; as ``FeatureExtractor.forward_with_mask``."""
        padded = self.extractor.padded_mask(images, mask)
        return OrderedDict(
            (name, (features, _nearest(padded, features.shape[-2:], stride)))
            for (name, features), stride in zip(self.forward(images).items(), self.strides, strict=True)
        )

    def forward_tokens(self, images: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The coarsest map as a sequence: ``(mask [B, h * w] bool, features [h * w, B, channels])``."""
        features, small_mask = self.forward_with_mask(images, mask)[self.out_names[-1]]
        return small_mask.flatten(1), features.flatten(2).permute(2, 0, 1)

    def param_groups(self, lr: float, decay: float = 1.0) -> list[dict[str, Any]]:
        """Optimizer groups as of ``FeatureExtractor.param_groups``, and a last one, ``pyramid``, at ``lr``."""
        own = [parameter for parameter in self.branches.parameters() if parameter.requires_grad]
        groups = self.extractor.param_groups(lr, decay)
        return [*groups, {"params": own, "lr": lr, "name": "pyramid"}] if own else groups


def _whole(stride: float) -> int | float:
    return int(stride) if stride == int(stride) else stride


def _nearest(mask: Tensor, size: Sequence[int], stride: float) -> Tensor:
    """The mask ``[B, H, W]`` at the first pixel of each map pixel: ``[B, *size]``.

    ``interpolate`` does the same where the stride divides the image; on a grid that was halved rounding up it
    would squeeze the mask.
    """
    rows, columns = (
        (torch.arange(count, device=mask.device) * stride).long().clamp(max=length - 1)
        for count, length in zip(size, mask.shape[-2:], strict=True)
    )
    return mask[:, rows][:, :, columns]


def _branch(scale: float, in_channels: int, channels: int) -> nn.Sequential:
    """``[B, in_channels, h, w]`` → ``[B, channels, scale * h, scale * w]``, halves rounded up."""
    half, quarter = max(in_channels // 2, 1), max(in_channels // 4, 1)
    resize: list[nn.Module] = []
    width = in_channels
    if scale >= 2:
        resize.append(nn.ConvTranspose2d(in_channels, half, kernel_size=2, stride=2))
        width = half
    if scale == 4:
        resize += [LayerNorm2d(half), nn.GELU(), nn.ConvTranspose2d(half, quarter, kernel_size=2, stride=2)]
        width = quarter
    if scale < 1:
        resize.append(nn.MaxPool2d(kernel_size=2, stride=2, ceil_mode=True))
    return nn.Sequential(
        *resize,
        nn.Conv2d(width, channels, kernel_size=1, bias=False),  # the norm after it has a shift
        LayerNorm2d(channels),
        nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False),
        LayerNorm2d(channels),
    )


# What every adapter takes, unless it says otherwise.
Extractor = FeatureExtractor | SimpleFeaturePyramid
