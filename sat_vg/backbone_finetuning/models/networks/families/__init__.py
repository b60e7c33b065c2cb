"""How each family of networks is cut into stages, and where its features and its head are."""

from sat_vg.backbone_finetuning.models.networks.families.convolutional import (
    ALEXNET,
    CONVNEXT,
    CUSTOM_CNN,
    DENSENET,
    EFFICIENTNET,
    GOOGLENET,
    INCEPTION_V3,
    MNASNET,
    MOBILENET_V2,
    MOBILENET_V3,
    REGNET,
    RESNET,
    SHUFFLENET_V2,
    SQUEEZENET,
    VGG,
)
from sat_vg.backbone_finetuning.models.networks.families.family import AuxiliaryHead, Family
from sat_vg.backbone_finetuning.models.networks.families.transformers import MAXVIT, SWIN, VIT

__all__ = [
    "ALEXNET",
    "CONVNEXT",
    "CUSTOM_CNN",
    "DENSENET",
    "EFFICIENTNET",
    "GOOGLENET",
    "INCEPTION_V3",
    "MAXVIT",
    "MNASNET",
    "MOBILENET_V2",
    "MOBILENET_V3",
    "REGNET",
    "RESNET",
    "SHUFFLENET_V2",
    "SQUEEZENET",
    "SWIN",
    "VGG",
    "VIT",
    "AuxiliaryHead",
    "Family",
]
