"""The table of backbones: one row each. A new one is a new row."""

import difflib
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

import torch
from torch import nn

from sat_vg.backbone_finetuning.configs.choices import Pool
from sat_vg.backbone_finetuning.models.networks.families import convolutional, transformers
from sat_vg.backbone_finetuning.models.networks.families.family import AuxiliaryHead, Family
from sat_vg.backbone_finetuning.models.networks.families.timm_networks import PREFIX as TIMM_PREFIX
from sat_vg.backbone_finetuning.models.networks.families.timm_networks import timm_family, timm_names
from sat_vg.backbone_finetuning.models.networks.hub_names import ALIASES, other_training, timm_name
from sat_vg.backbone_finetuning.models.stages import find_member
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.seeding import Purpose, derive_seed


@dataclass(frozen=True)
class BackboneRow:
    """One network."""

    name: str
    """Torchvision's name, ``custom_cnn``, or ``timm:`` and timm's name."""
    family: Family
    """How it is cut into stages, and how its last output is pooled."""
    pool: Pool = "default"
    """``avg`` where the family's own way of pooling was replaced."""


_NAMES: dict[Family, str] = {
    convolutional.RESNET: """
        resnet18 resnet34 resnet50 resnet101 resnet152
        resnext50_32x4d resnext101_32x8d resnext101_64x4d wide_resnet50_2 wide_resnet101_2
    """,
    convolutional.REGNET: """
        regnet_x_400mf regnet_x_800mf regnet_x_1_6gf regnet_x_3_2gf regnet_x_8gf regnet_x_16gf regnet_x_32gf
        regnet_y_400mf regnet_y_800mf regnet_y_1_6gf regnet_y_3_2gf regnet_y_8gf regnet_y_16gf regnet_y_32gf
        regnet_y_128gf
    """,
    convolutional.DENSENET: "densenet121 densenet161 densenet169 densenet201",
    convolutional.VGG: "vgg11 vgg13 vgg16 vgg19 vgg11_bn vgg13_bn vgg16_bn vgg19_bn",
    convolutional.ALEXNET: "alexnet",
    convolutional.SQUEEZENET: "squeezenet1_0 squeezenet1_1",
    convolutional.GOOGLENET: "googlenet",
    convolutional.INCEPTION_V3: "inception_v3",
    convolutional.MOBILENET_V2: "mobilenet_v2",
    convolutional.MOBILENET_V3: "mobilenet_v3_small mobilenet_v3_large",
    convolutional.MNASNET: "mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3",
    convolutional.SHUFFLENET_V2: "shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0",
    convolutional.EFFICIENTNET: """
        efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3
        efficientnet_b4 efficientnet_b5 efficientnet_b6 efficientnet_b7
        efficientnet_v2_s efficientnet_v2_m efficientnet_v2_l
    """,
    convolutional.CONVNEXT: "convnext_tiny convnext_small convnext_base convnext_large",
    transformers.VIT: "vit_b_16 vit_b_32 vit_l_16 vit_l_32 vit_h_14",
    transformers.SWIN: "swin_t swin_s swin_b swin_v2_t swin_v2_s swin_v2_b",
    transformers.MAXVIT: "maxvit_t",
    convolutional.CUSTOM_CNN: "custom_cnn",
}
BACKBONES = {name: BackboneRow(name, family) for family, names in _NAMES.items() for name in names.split()}


def find_backbone(name: str) -> BackboneRow:
    """The row of a backbone, by torchvision's name, one of ``ALIASES``, or ``timm:`` and timm's name.

    Raises:
        ConfigError: the name is unknown; the nearest known ones are named. Or it stands for weights that torchvision
            does not have; timm's name of them is given. Or it needs timm, which is not installed.
    """
    if not isinstance(name, str):
        raise ConfigError(f"backbone = {name!r}: must be a name, such as resnet50; sat-vg backbones lists all")
    if name.startswith(TIMM_PREFIX):
        return _timm_row(name)
    known = ALIASES.get(name, name)
    if known in BACKBONES:
        return BACKBONES[known]
    theirs = timm_name(name)
    if theirs is not None:
        raise ConfigError(
            f"backbone = {name!r}: torchvision has no such weights; timm has them: {TIMM_PREFIX}{theirs}"
        )
    raise ConfigError(f"backbone = {name!r}: unknown; {_nearest(name)}sat-vg backbones lists all {len(BACKBONES)}")


def _nearest(name: str) -> str:
    """What may be meant by an unknown name, here or in timm."""
    bare = re.sub(r"^(hf[-_]hub:)?timm[/_:]", "", name.lower())
    theirs = timm_names()
    for exact in (bare, bare.partition(".")[0]):  # with and without the tag of its weights
        if exact in theirs:
            return f"timm has it: --backbone {TIMM_PREFIX}{exact}. "
    word = other_training(name)
    if word is not None:  # an architecture of a similar name would come with other weights
        return (
            f"it names weights ({word}) that torchvision does not have; timm.list_pretrained('*{word}*') lists "
            f"timm's, which are given as {TIMM_PREFIX}NAME. "
        )
    pool = {one: one for one in (*BACKBONES, *ALIASES)} | {one: TIMM_PREFIX + one for one in theirs if "." not in one}
    near = difflib.get_close_matches(bare.replace("-", "_"), pool, n=3, cutoff=0.5)
    own = difflib.get_close_matches(name.lower(), [*BACKBONES, *ALIASES], n=1, cutoff=0.5)
    meant = list(dict.fromkeys([*own, *(pool[one] for one in near)]))[:3]
    hint = f"did you mean {' or '.join(meant)}? " if meant else ""
    if not theirs:
        hint += f"If it is a network of timm: pip install 'sat_vg[timm]', then --backbone {TIMM_PREFIX}{bare}. "
    return hint


@functools.lru_cache
def _timm_row(name: str) -> BackboneRow:
    return BackboneRow(name, timm_family(name.removeprefix(TIMM_PREFIX)))


def build_network(row: BackboneRow, num_classes: int, image_size: int, seed: int = 0) -> nn.Module:
    """Build the network with random weights and a new classifier, for RGB images of ``image_size`` pixels a side.

    The caller's random generator is left as it was.

    Raises:
        ConfigError: the network cannot be built for this image size.
    """
    smallest = row.family.smallest_image
    if image_size < smallest:
        raise ConfigError(
            f"image_size = {image_size}: {row.name} needs {smallest} pixels or more; for example "
            f"{max(64, smallest)}, or another backbone such as custom_cnn"
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, Purpose.INITIALISATION))
        return row.family.new_network(row.name, num_classes, image_size)


def with_pool(row: BackboneRow, network: nn.Module, pool: Pool) -> BackboneRow:
    """The row with what the classifier sees as ``pool`` says; ``network`` was built from it.

    Raises:
        ConfigError: there is no such pooling, or the network has no class token that it could replace.
    """
    if pool not in get_args(Pool):
        raise ConfigError(f"pool = {pool!r}: must be {' or '.join(get_args(Pool))}")
    if pool == "default":
        return row
    average = row.family.patch_average(network)
    if average is None:
        raise ConfigError(
            f"pool = {pool!r}: {row.name} does not classify by a class token that an average could replace; leave it "
            "out, or take a backbone such as vit_b_16"
        )
    return replace(row, family=replace(row.family, pool=average), pool=pool)


def usual_size(row: BackboneRow, weights: str | None = None) -> int:
    """Height and width in pixels of the training of published weights: those named, or else the best ones."""
    published = row.family.weights(row.name)
    entry = published.get(weights or "DEFAULT", published.get("DEFAULT"))
    return row.family.usual_size(row.name) if entry is None else entry.image_size


def takes_image_size(row: BackboneRow, image_size: int) -> bool:
    """Whether the network can be built for images of this size."""
    try:
        build_network(row, 2, image_size)
    except ConfigError:
        return False
    return True


def new_layers(network: nn.Module, family: Family) -> tuple[str, ...]:
    """Full names of the parameters that no pre-trained weights are taken for: those that give the classes."""
    heads = (head.classifier for head in present_auxiliary_heads(network, family))
    return _parameters_of(network, (family.classifier, *heads))


def head_parameters(network: nn.Module, family: Family) -> tuple[str, ...]:
    """Full names of the parameters outside all stages: the classifier's and those of auxiliary heads."""
    heads = (head.module for head in present_auxiliary_heads(network, family))
    return _parameters_of(network, (family.classifier, *heads))


def _parameters_of(network: nn.Module, modules: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{part}.{name}" for part in modules for name, _ in network.get_submodule(part).named_parameters())


def present_auxiliary_heads(network: nn.Module, family: Family) -> tuple[AuxiliaryHead, ...]:
    """The family's auxiliary heads that this network was built with."""
    return tuple(head for head in family.auxiliary_heads if find_member(network, head.module) is not None)


def absent_auxiliary_heads(network: nn.Module, row: BackboneRow) -> list[str]:
    """Names of the family's auxiliary heads that this network was built without, as its images are small."""
    return [head.module for head in row.family.auxiliary_heads if find_member(network, head.module) is None]
