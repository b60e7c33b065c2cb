"""Maps by name with ``output_shape()``, as detectron2 takes them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from sat_vg.backbone_finetuning.models.feature_pyramid import Extractor


class ShapeSpec(NamedTuple):
    """A map's shape, with the names that detectron2 reads.

    Attributes:
        channels: of the map.
        height: unknown beforehand.
        width: unknown beforehand.
        stride: input pixels per map pixel.
    """

    channels: int
    height: int | None = None
    width: int | None = None
    stride: float | None = None


class Detectron2Backbone(nn.Module):
    """Maps by name, with the attributes of detectron2's ``Backbone``: made by ``as_detectron2``.

    Attributes:
        size_divisibility: what the sides of a batch must be multiples of.
        padding_constraints: the same as detectron2's ``ImageList`` takes it; images need not be square.
    """

    def __init__(self, extractor: Extractor) -> None:
        super().__init__()
        self.extractor = extractor
        self.size_divisibility = extractor.size_divisibility
        self.padding_constraints = {"size_divisibility": extractor.size_divisibility, "square_size": 0}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """``[B, C, H, W]``, normalised → ``[B, channels, h, w]`` by stage name."""
        return dict(self.extractor(images))

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each map."""
        rows = zip(self.extractor.out_names, self.extractor.channels, self.extractor.strides, strict=True)
        return {name: ShapeSpec(channels=channels, stride=stride) for name, channels, stride in rows}


def as_detectron2(extractor: Extractor) -> Detectron2Backbone:
    """The extractor as a backbone of detectron2, or as the ``bottom_up`` of its FPN.

    detectron2's own models normalise by ``pixel_mean`` and ``pixel_std`` on images in [0, 255]: give them
    ``[255 * m for m in extractor.mean]`` and ``[255 * s for s in extractor.std]``, and ``input_format="RGB"``.
    """
    return Detectron2Backbone(extractor)
