"""A small convolutional network for tiny images, such as 28 to 64 pixels."""

from itertools import pairwise

from torch import Tensor, nn

WIDTHS = (32, 64, 128, 256, 512)


def _convolution(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


class CustomCNN(nn.Module):
    """A stem at full resolution and four stages of two 3 × 3 convolutions each, strides 2, 4, 8, 16.

    In the manner of VGG (Simonyan & Zisserman, 2015) with batch norm (Ioffe & Szegedy, 2015) and strides in place of
    poolings; 4.7 M parameters. No weights are published for it: it is trained from random ones.

    Args:
        num_classes: outputs of the classifier.
    """

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_convolution(3, WIDTHS[0], 1))
        for number, (inputs, outputs) in enumerate(pairwise(WIDTHS), start=1):
            layers = _convolution(inputs, outputs, 2) + _convolution(outputs, outputs, 1)
            self.add_module(f"stage{number}", nn.Sequential(*layers))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(WIDTHS[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """``images [B, 3, H, W]`` → logits ``[B, num_classes]``."""
        value = images
        for name in ("stem", "stage1", "stage2", "stage3", "stage4"):
            value = self.get_submodule(name)(value)
        logits: Tensor = self.fc(self.avgpool(value).flatten(1))
        return logits
