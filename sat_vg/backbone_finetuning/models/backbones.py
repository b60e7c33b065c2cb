"""The table of backbones: one row each. A new one is a new row."""

import difflib
from dataclasses import dataclass

import torch
from torch import nn
from torchvision import models

from sat_vg.backbone_finetuning.models.families import (
    EFFICIENTNET,
    MOBILENET_V2,
    RESNET,
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


BACKBONES: dict[str, BackboneRow] = {
    row.name: row
    for row in (
        BackboneRow("resnet18", RESNET),
        BackboneRow("resnet34", RESNET),
        BackboneRow("resnet50", RESNET),
        BackboneRow("resnet101", RESNET),
        BackboneRow("resnet152", RESNET),
        BackboneRow("mobilenet_v2", MOBILENET_V2),
        BackboneRow("efficientnet_b0", EFFICIENTNET),
        BackboneRow("efficientnet_b1", EFFICIENTNET),
        BackboneRow("efficientnet_b2", EFFICIENTNET),
        BackboneRow("efficientnet_b3", EFFICIENTNET),
        BackboneRow("efficientnet_b4", EFFICIENTNET),
        BackboneRow("efficientnet_b5", EFFICIENTNET),
        BackboneRow("efficientnet_b6", EFFICIENTNET),
        BackboneRow("efficientnet_b7", EFFICIENTNET),
        BackboneRow("efficientnet_v2_s", EFFICIENTNET),
        BackboneRow("efficientnet_v2_m", EFFICIENTNET),
        BackboneRow("efficientnet_v2_l", EFFICIENTNET),
        BackboneRow("vit_b_16", VIT),
        BackboneRow("vit_b_32", VIT),
        BackboneRow("vit_l_16", VIT),
        BackboneRow("vit_l_32", VIT),
        BackboneRow("vit_h_14", VIT),
    )
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
    options = {"image_size": image_size} if row.family.fixed_size else {}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, Purpose.INITIALISATION))
        try:
            network: nn.Module = models.get_model(row.name, weights=None, num_classes=num_classes, **options)
        except (AssertionError, RuntimeError) as error:  # torchvision asserts on sizes that do not divide
            patch = int(row.name.rsplit("_", 1)[1]) if row.family.fixed_size else 32
            near = max(patch, round(image_size / patch) * patch)
            raise ConfigError(
                f"image_size = {image_size}: {row.name} needs a multiple of {patch}; for example {near}"
            ) from error
    return network


def classifier_names(network: nn.Module, family: Family) -> tuple[str, ...]:
    """Full names of the classifier's parameters, such as ``fc.weight`` and ``fc.bias``."""
    classifier: nn.Module = find_member(network, family.classifier)
    return tuple(f"{family.classifier}.{name}" for name, _ in classifier.named_parameters())
