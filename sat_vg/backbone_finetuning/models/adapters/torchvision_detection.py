"""torchvision.models.detection: levels of one width."""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from sat_vg.backbone_finetuning.models.feature_extractor import FeatureExtractor
from sat_vg.backbone_finetuning.models.feature_pyramid import Extractor, SimpleFeaturePyramid
from sat_vg.backbone_finetuning.utils.errors import ConfigError


def crop_padding(features: Tensor, images: Tensor, stride: float) -> Tensor:
    """``features [B, C, h, w]`` without the rows and columns that lie in what the extractor padded."""
    height, width = (math.ceil(side / stride) for side in images.shape[-2:])
    return features[:, :, :height, :width]


class TorchvisionBackbone(nn.Module):
    """Levels of one width for ``torchvision.models.detection``: made by ``as_torchvision``.

    Attributes:
        body: the extractor, or the simple feature pyramid around it.
        out_channels: channels of every level.
    """

    def __init__(self, body: Extractor, fpn: nn.Module | None, out_channels: int) -> None:
        super().__init__()
        self.body = body
        self.fpn = fpn
        self.out_channels = out_channels
        self.last_level = LastLevelMaxPool()

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """``[B, C, H, W]``, normalised → ``[B, out_channels, h, w]`` under ``"0"``, ``"1"``, … and ``"pool"``."""
        levels = OrderedDict((str(index), level) for index, level in enumerate(self.body(images).values()))
        if self.fpn is not None:
            levels = self.fpn(levels)
        # The detector infers a level's scale from its size and that of the images.
        inside = [
            crop_padding(level, images, stride)
            for level, stride in zip(levels.values(), self.body.strides, strict=True)
        ]
        values, names = self.last_level(inside, inside, list(levels))
        return OrderedDict(zip(names, values, strict=True))


def as_torchvision(extractor: FeatureExtractor, fpn_channels: int = 256) -> TorchvisionBackbone:
    """The extractor as the backbone of ``FasterRCNN``, ``MaskRCNN``, ``KeypointRCNN`` and ``FCOS``.

    Over maps of several strides lies torchvision's ``FeaturePyramidNetwork``, over those of a single stride (ViT) a
    ``SimpleFeaturePyramid``; either starts untrained. The levels are called ``"0"``, ``"1"``, … and ``"pool"``, as
    torchvision's defaults expect them; those are for four maps and the pool.

    The detector normalises by itself: give it images in [0, 1], and
    ``FasterRCNN(backbone, num_classes, image_mean=extractor.mean, image_std=extractor.std)``.

    Args:
        extractor: its maps are the levels.
        fpn_channels: channels of every level.

    Raises:
        ConfigError: ``fpn_channels`` is below 1, or a stride is no power of two (a ViT with patches of 14 pixels).
    """
    if fpn_channels < 1:
        raise ConfigError(f"fpn_channels = {fpn_channels}: a level needs at least 1; the usual value is 256")
    body: Extractor = extractor
    fpn = None
    if len(set(extractor.strides)) == 1:
        body = SimpleFeaturePyramid(extractor, fpn_channels)
    else:
        fpn = FeaturePyramidNetwork(list(extractor.channels), fpn_channels)
        reference = next(extractor.parameters())
        fpn.to(device=reference.device, dtype=reference.dtype)
    if not all(math.log2(stride).is_integer() for stride in body.strides):
        raise ConfigError(
            f"backbone = {extractor.backbone!r} gives strides {body.strides}: torchvision's RoI pooling rounds "
            "them to powers of two and would cut boxes at wrong places. Use a backbone with patches of 16 or 32 "
            "pixels, or SimpleFeaturePyramid with a RoI pooling of your own"
        )
    return TorchvisionBackbone(body, fpn, fpn_channels)
