"""Networks for the contract suite: without values on the meta device, or with cheap ones."""

import math
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from torch import nn
from torchvision.models.regnet import BlockParams

from sat_vg.backbone_finetuning.models.networks.table import BackboneRow, build_network

# A small one of each family.
SMALL = [
    "resnet18", "resnet50", "resnext50_32x4d", "regnet_y_400mf", "densenet121", "vgg11_bn", "alexnet", "mobilenet_v2",
    "mobilenet_v3_small", "mnasnet0_5", "shufflenet_v2_x0_5", "efficientnet_b0", "efficientnet_v2_s", "convnext_tiny",
    "vit_b_16", "swin_t", "swin_v2_t", "squeezenet1_1", "googlenet", "inception_v3", "maxvit_t", "custom_cnn",
]  # fmt: skip
SIZES = {"Inception v3": 96, "MaxViT": 224}


def slow_but(quick: Collection[str], names: Iterable[str]) -> list:
    """The names as parameters of a test that is slow for all but the ``quick`` ones."""
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in names]


def smallest_size(row: BackboneRow) -> int:
    """The image size that a family is tried at."""
    return SIZES.get(row.family.name, 64 if not row.name.endswith("_14") else 56)


@contextmanager
def _regnet_widths_on_the_cpu() -> Iterator[None]:
    """torchvision's RegNet computes its widths with tensors, which have no values on the meta device."""
    compute = BlockParams.from_init_params.__func__

    def on_the_cpu(cls, *arguments, **options):
        with torch.device("cpu"):
            return compute(cls, *arguments, **options)

    with mock.patch.object(BlockParams, "from_init_params", classmethod(on_the_cpu)):
        yield


def meta_network(row: BackboneRow, image_size: int, num_classes: int = 7) -> nn.Module:
    """The network without memory for its parameters: shapes only."""
    with torch.device("meta"), _regnet_widths_on_the_cpu():
        return build_network(row, num_classes, image_size).eval()


@contextmanager
def no_initialisation() -> Iterator[None]:
    """Leave parameters as they lie in memory: filling them is cheaper than drawing random numbers."""
    names = [name for name in dir(nn.init) if name.endswith("_") and not name.startswith("_")]
    with mock.patch.multiple(nn.init, **{name: lambda tensor, *_, **__: tensor for name in names}):
        yield


@torch.no_grad()
def fill(network: nn.Module) -> None:
    """Give every parameter and statistic values that let signals through, from one block of random numbers."""
    block = torch.randn(1 << 16, generator=torch.Generator().manual_seed(0))
    for number, (name, parameter) in enumerate(network.named_parameters()):
        count = parameter.numel()
        values = block.roll(number).repeat(math.ceil(count / len(block)))[:count].view(parameter.shape)
        if parameter.ndim > 1:
            parameter.copy_(values / math.sqrt(parameter[0].numel()))
        else:
            parameter.copy_(0.1 * values + (1 if name.endswith("weight") else 0))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # not those of a fresh layer, so that mixing them up shows
            module.running_mean.copy_(0.1 * block[: module.num_features])
            module.running_var.copy_(1 + 0.5 * block[: module.num_features].sin())
