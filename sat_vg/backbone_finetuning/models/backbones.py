"""The table of backbones: one row each. A new one is a new row."""

import difflib
from dataclasses import dataclass

import torch
from torch import nn
from torchvision import models

from sat_vg.backbone_finetuning.models.families import (
    ALEXNET,
    CONVNEXT,
    DENSENET,
    EFFICIENTNET,
    MNASNET,
    MOBILENET_V2,
    MOBILENET_V3,
    REGNET,
    RESNET,
    SHUFFLENET_V2,
    SWIN,
    VGG,
    VIT,
    Family,
)
from sat_vg.backbone_finetuning.models.stages import find_member
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.seeding import Purpose, derive_seed


@dataclass(frozen=True)
class BackboneRow:
    """One torchvision network.

    Attributes:
        name: torchvision's name.
        family: how it is cut into stages.
    """

    name: str
    family: Family


_NAMES: tuple[tuple[Family, str], ...] = (
    (RESNET, "resnet18 resnet34 resnet50 resnet101 resnet152"),
    (RESNET, "resnext50_32x4d resnext101_32x8d resnext101_64x4d wide_resnet50_2 wide_resnet101_2"),
    (REGNET, "regnet_x_400mf regnet_x_800mf regnet_x_1_6gf regnet_x_3_2gf regnet_x_8gf regnet_x_16gf regnet_x_32gf"),
    (REGNET, "regnet_y_400mf regnet_y_800mf regnet_y_1_6gf regnet_y_3_2gf regnet_y_8gf regnet_y_16gf regnet_y_32gf"),
    (DENSENET, "densenet121 densenet161 densenet169 densenet201"),
    (VGG, "vgg11 vgg13 vgg16 vgg19 vgg11_bn vgg13_bn vgg16_bn vgg19_bn"),
    (ALEXNET, "alexnet"),
    (MOBILENET_V2, "mobilenet_v2"),
    (MOBILENET_V3, "mobilenet_v3_small mobilenet_v3_large"),
    (MNASNET, "mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3"),
    (SHUFFLENET_V2, "shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0"),
    (EFFICIENTNET, "efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3"),
    (EFFICIENTNET, "efficientnet_b4 efficientnet_b5 efficientnet_b6 efficientnet_b7"),
    (EFFICIENTNET, "efficientnet_v2_s efficientnet_v2_m efficientnet_v2_l"),
    (CONVNEXT, "convnext_tiny convnext_small convnext_base convnext_large"),
    (VIT, "vit_b_16 vit_b_32 vit_l_16 vit_l_32 vit_h_14"),
    (SWIN, "swin_t swin_s swin_b swin_v2_t swin_v2_s swin_v2_b"),
)
BACKBONES: dict[str, BackboneRow] = {
    name: BackboneRow(name, family) for family, names in _NAMES for name in names.split()
}


def find_backbone(name: str) -> BackboneRow:
    """The table's row of a backbone.

    Raises:
        ConfigError: the name is unknown; the nearest known ones are named.
    """
    if name in BACKBONES:
        return BACKBONES[name]
    near = difflib.get_close_matches(name.lower(), BACKBONES, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise ConfigError(f"backbone = {name!r}: unknown; {hint}Known: {', '.join(BACKBONES)}")


def build_network(row: BackboneRow, num_classes: int, image_size: int, seed: int = 0) -> nn.Module:
    """Build torchvision's network with random weights and a new classifier.

    Args:
        row: the table's row.
        num_classes: outputs of the classifier.
        image_size: height and width of the training images; matters for networks with position embeddings.
        seed: of the random weights; the caller's generator is left as it was.

    Raises:
        ConfigError: the network cannot be built for this image size.
    """
    options = row.family.build_options(image_size)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, Purpose.INITIALISATION))
        try:
            network: nn.Module = models.get_model(row.name, weights=None, num_classes=num_classes, **options)
        except (AssertionError, RuntimeError) as error:  # torchvision asserts on sizes that do not divide
            patch = int(row.name.rsplit("_", 1)[1]) if row.family is VIT else 32
            near = max(patch, round(image_size / patch) * patch)
            raise ConfigError(
                f"image_size = {image_size}: {row.name} needs a multiple of {patch}; for example {near}"
            ) from error
    return network


def classifier_names(network: nn.Module, family: Family) -> tuple[str, ...]:
    """Full names of the classifier's parameters, such as ``fc.weight`` and ``fc.bias``."""
    classifier: nn.Module = find_member(network, family.classifier)
    return tuple(f"{family.classifier}.{name}" for name, _ in classifier.named_parameters())
