"""Networks for the contract suite: without values on the meta device, or with cheap ones."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn
from torchvision.models.regnet import BlockParams

from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.models.networks.facts import read_facts
from sat_vg.backbone_finetuning.models.networks.table import BACKBONES, BackboneRow, build_network


def num_parameters(row: BackboneRow) -> float:
    """Of the listing; infinite for a new row, which ``make backbones`` is yet to measure."""
    return read_facts()[row.name].parameters if row.name in read_facts() else math.inf


# Blocks that the smallest of their families have not.
_OTHER_BLOCKS = ["resnext50_32x4d", "efficientnet_v2_s", "swin_v2_t"]
_BY_SIZE = sorted(BACKBONES.values(), key=num_parameters, reverse=True)
# The smallest one of each family, and those.
SMALL = [*{row.family.name: row.name for row in _BY_SIZE}.values(), *_OTHER_BLOCKS]


def slow_but(quick: Collection[str], names: Iterable[str]) -> list:
    """The names as parameters of a test that is slow for all but the ``quick`` ones."""
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in names]


def smallest_size(row: BackboneRow) -> int:
    """The image size that a network is tried at."""
    multiple = row.family.image_multiple(row.name)
    return max(multiple, (64 if row.family.smallest_image <= 64 else 96) // multiple * multiple)


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


def filled_network(row: BackboneRow, image_size: int, num_classes: int) -> nn.Module:
    """The network with the values of ``fill``."""
    with no_initialisation():
        network = build_network(row, num_classes, image_size)
    fill(network)
    return network


def model_on(build: Callable[[BackboneRow, int, int], nn.Module], name: str, **options: Any) -> FineTuneModel:
    """A FineTuneModel of 7 classes around a network that was built more cheaply than its constructor does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "sat_vg.backbone_finetuning.models.finetune_model.build_network",
            lambda row, num_classes, image_size, seed: build(row, image_size, num_classes),
        )
        return FineTuneModel(name, 7, pretrained=False, image_size=smallest_size(BACKBONES[name]), **options)
