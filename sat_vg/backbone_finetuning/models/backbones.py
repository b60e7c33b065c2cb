"""The table of backbones: one row each. A new one is a new row."""

import difflib
import functools
import re
from dataclasses import dataclass

import torch
from torch import nn

from sat_vg.backbone_finetuning.models import families
from sat_vg.backbone_finetuning.models.families import AuxiliaryHead, Family
from sat_vg.backbone_finetuning.models.families.timm_networks import PREFIX as TIMM_PREFIX
from sat_vg.backbone_finetuning.models.families.timm_networks import timm_family, timm_names
from sat_vg.backbone_finetuning.models.stages import find_member
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.seeding import Purpose, derive_seed


@dataclass(frozen=True)
class BackboneRow:
    """One network.

    Attributes:
        name: torchvision's name, ``custom_cnn``, or ``timm:`` and timm's name.
        family: how it is cut into stages.
    """

    name: str
    family: Family


_NAMES: tuple[tuple[Family, str], ...] = (
    (families.RESNET, "resnet18 resnet34 resnet50 resnet101 resnet152"),
    (families.RESNET, "resnext50_32x4d resnext101_32x8d resnext101_64x4d wide_resnet50_2 wide_resnet101_2"),
    (
        families.REGNET,
        "regnet_x_400mf regnet_x_800mf regnet_x_1_6gf regnet_x_3_2gf regnet_x_8gf regnet_x_16gf regnet_x_32gf",
    ),
    (
        families.REGNET,
        "regnet_y_400mf regnet_y_800mf regnet_y_1_6gf regnet_y_3_2gf regnet_y_8gf regnet_y_16gf regnet_y_32gf",
    ),
    (families.REGNET, "regnet_y_128gf"),
    (families.DENSENET, "densenet121 densenet161 densenet169 densenet201"),
    (families.VGG, "vgg11 vgg13 vgg16 vgg19 vgg11_bn vgg13_bn vgg16_bn vgg19_bn"),
    (families.ALEXNET, "alexnet"),
    (families.SQUEEZENET, "squeezenet1_0 squeezenet1_1"),
    (families.GOOGLENET, "googlenet"),
    (families.INCEPTION_V3, "inception_v3"),
    (families.MOBILENET_V2, "mobilenet_v2"),
    (families.MOBILENET_V3, "mobilenet_v3_small mobilenet_v3_large"),
    (families.MNASNET, "mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3"),
    (families.SHUFFLENET_V2, "shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0"),
    (families.EFFICIENTNET, "efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3"),
    (families.EFFICIENTNET, "efficientnet_b4 efficientnet_b5 efficientnet_b6 efficientnet_b7"),
    (families.EFFICIENTNET, "efficientnet_v2_s efficientnet_v2_m efficientnet_v2_l"),
    (families.CONVNEXT, "convnext_tiny convnext_small convnext_base convnext_large"),
    (families.VIT, "vit_b_16 vit_b_32 vit_l_16 vit_l_32 vit_h_14"),
    (families.SWIN, "swin_t swin_s swin_b swin_v2_t swin_v2_s swin_v2_b"),
    (families.MAXVIT, "maxvit_t"),
    (families.CUSTOM_CNN, "custom_cnn"),
)
BACKBONES: dict[str, BackboneRow] = {
    name: BackboneRow(name, family) for family, names in _NAMES for name in names.split()
}


# Names under which the same architectures are known elsewhere. The weights are torchvision's.
_HUB_NAMES = {
    "microsoft/resnet-{}": ("resnet{}", "18 34 50 101 152"),
    "facebook/convnext-{}-224": ("convnext_{}", "tiny small base large"),
    "google/vit-base-patch{}-224": ("vit_b_{}", "16 32"),
    "google/vit-base-patch{}-224-in21k": ("vit_b_{}", "16 32"),
    "google/vit-large-patch{}-224": ("vit_l_{}", "16 32"),
    "google/efficientnet-{}": ("efficientnet_{}", "b0 b1 b2 b3 b4 b5 b6 b7"),
    "vit_base_patch{}_224": ("vit_b_{}", "16 32"),
    "vit_large_patch{}_224": ("vit_l_{}", "16 32"),
    "vit_huge_patch{}_224": ("vit_h_{}", "14"),
    "tf_efficientnet_{}": ("efficientnet_{}", "b0 b1 b2 b3 b4 b5 b6 b7"),
    "mobilenetv2_{}": ("mobilenet_v2", "100"),
    "mobilenetv3_{}_100": ("mobilenet_v3_{}", "small large"),
}
_SWIN_SIZES = {"tiny": "t", "small": "s", "base": "b"}
ALIASES: dict[str, str] = {
    theirs.format(part): ours.format(part) for theirs, (ours, parts) in _HUB_NAMES.items() for part in parts.split()
}
ALIASES.update({f"microsoft/swin-{size}-patch4-window7-224": f"swin_{t}" for size, t in _SWIN_SIZES.items()})
ALIASES.update({f"swin_{size}_patch4_window7_224": f"swin_{t}" for size, t in _SWIN_SIZES.items()})
ALIASES.update({f"microsoft/swinv2-{size}-patch4-window8-256": f"swin_v2_{t}" for size, t in _SWIN_SIZES.items()})


def find_backbone(name: str) -> BackboneRow:
    """The row of a backbone, by torchvision's name, one of ``ALIASES``, or ``timm:`` and timm's name.

    Raises:
        ConfigError: the name is unknown; the nearest known ones are named. Or it needs timm, which is not installed.
    """
    if name.startswith(TIMM_PREFIX):
        return _timm_row(name)
    known = ALIASES.get(name, name)
    if known in BACKBONES:
        return BACKBONES[known]
    raise ConfigError(f"backbone = {name!r}: unknown; {_nearest(name)}sat-vg backbones lists all {len(BACKBONES)}")


def _nearest(name: str) -> str:
    """What may be meant by an unknown name, here or in timm."""
    bare = re.sub(r"^(hf[-_]hub:)?timm[/_:]", "", name.lower())
    theirs = timm_names()
    for exact in (bare, bare.partition(".")[0]):  # with and without the tag of its weights
        if exact in theirs:
            return f"timm has it: --backbone {TIMM_PREFIX}{exact}. "
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
    """Build the network with random weights and a new classifier, for RGB images.

    Args:
        row: the table's row.
        num_classes: outputs of the classifier.
        image_size: height and width of the training images; matters for networks with position embeddings.
        seed: of the random weights; the caller's generator is left as it was.

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
        return row.family.build(row.name, num_classes, image_size)


def new_layers(network: nn.Module, family: Family) -> tuple[str, ...]:
    """Full names of the parameters that no pre-trained weights are taken for: those that give the classes."""
    layers = (family.classifier, *(head.classifier for head in present_auxiliary_heads(network, family)))
    return tuple(f"{layer}.{name}" for layer in layers for name, _ in network.get_submodule(layer).named_parameters())


def head_parameters(network: nn.Module, family: Family) -> tuple[str, ...]:
    """Full names of the parameters outside all stages: the classifier's and those of auxiliary heads."""
    parts = (family.classifier, *(head.module for head in present_auxiliary_heads(network, family)))
    return tuple(f"{part}.{name}" for part in parts for name, _ in network.get_submodule(part).named_parameters())


def present_auxiliary_heads(network: nn.Module, family: Family) -> tuple[AuxiliaryHead, ...]:
    """The family's auxiliary heads that this network was built with."""
    return tuple(head for head in family.auxiliary_heads if find_member(network, head.module) is not None)
