"""The last map alone, for models that take one tensor from their backbone."""

from torch import Tensor, nn

from sat_vg.backbone_finetuning.models.feature_pyramid import Extractor


class TensorBackbone(nn.Module):
    """Images → the last map: made by ``as_tensor``.

    Attributes:
        num_channels: of the map.
        out_channels: the same, under torchvision's name.
        stride: input pixels per map pixel.
    """

    def __init__(self, extractor: Extractor) -> None:
        super().__init__()
        self.extractor = extractor
        self.num_channels = self.out_channels = extractor.num_channels
        self.stride = extractor.strides[-1]

    def forward(self, images: Tensor) -> Tensor:
        """``[B, C, H, W]``, normalised → ``[B, num_channels, h, w]``."""
        features: Tensor = self.extractor(images)[self.extractor.out_names[-1]]
        return features


def as_tensor(extractor: Extractor) -> TensorBackbone:
    """The extractor as a module that gives its last map as one tensor and no dictionary.

    So it stands where ``torch.nn.Sequential(*list(resnet.children())[:-2])`` did: of a ResNet-50
    ``[B, 2048, 7, 7]`` for images of 224 pixels.
    """
    return TensorBackbone(extractor)
