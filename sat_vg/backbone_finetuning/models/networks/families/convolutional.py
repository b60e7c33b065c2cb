"""Families of convolutional networks: where their stages, their features and their head are."""

import re
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from sat_vg.backbone_finetuning.models.networks.custom_cnn import CustomCNN
from sat_vg.backbone_finetuning.models.networks.families.family import (
    AuxiliaryHead,
    Family,
    adaptive_average,
    always,
    cut_features,
    four_stages,
    global_average,
    listed_stages,
    mean_over_places,
    neck_stage,
    no_weights,
    parameters_named,
    pooled_already,
)
from sat_vg.backbone_finetuning.models.stages import Stage, find_member

_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # what the Inception networks were trained with: images in [-1, 1]
_PAD_TO_32 = partial(always, 32)  # their poolings and strided layers would cut off the last row or column
_INCEPTION_SMALLEST_WITH_AUXILIARY = 299


def _halving_layers(network: nn.Module, kind: type[nn.Module]) -> list[int]:
    """Positions in ``network.features`` of the layers of that kind that halve the map, or hold one that does."""
    features: nn.Sequential = network.features  # type: ignore[assignment]
    return [
        index
        for index, layer in enumerate(features)
        if any(isinstance(m, kind) and m.stride in (2, (2, 2)) for m in layer.modules())
    ]


def _mobilenet_v2_stages(network: nn.Module) -> tuple[Stage, ...]:
    # The seven settings of inverted residuals: 1, 2, 3, 4, 3, 3, 1 blocks (Sandler et al., 2018, table 2).
    names = ("stem", *(f"stage{n}" for n in range(1, 8)), "head_conv")
    return tuple(cut_features(network, (0, 1, 2, 4, 7, 11, 14, 17, 18), names))


def _efficientnet_stages(network: nn.Module) -> tuple[Stage, ...]:
    count = len(network.features)  # type: ignore[arg-type]
    names = ("stem", *(f"stage{n}" for n in range(1, count - 1)), "head_conv")
    return tuple(cut_features(network, range(count), names))


def _dense_norm(network: nn.Module, features: Tensor) -> Tensor:
    return nn.functional.relu(find_member(network, "features.norm5")(features))


def _densenet_stages(network: nn.Module) -> tuple[Stage, ...]:
    blocks = [Stage(f"block{n}", (f"features.transition{n - 1}", f"features.denseblock{n}")) for n in (2, 3, 4)]
    stem = Stage("stem", tuple(f"features.{name}" for name in ("conv0", "norm0", "relu0", "pool0")))
    first = Stage("block1", ("features.denseblock1",))
    return (stem, first, *blocks, Stage("norm", ("features.norm5",), _dense_norm))


def _vgg_stages(network: nn.Module) -> tuple[Stage, ...]:
    starts = [0, *(index + 1 for index in _halving_layers(network, nn.MaxPool2d)[:-1])]
    return (*cut_features(network, starts, [f"block{n}" for n in range(1, 6)]), neck_stage(5))


def _alexnet_stages(network: nn.Module) -> tuple[Stage, ...]:
    names = [f"conv{n}" for n in range(1, 6)]
    return (*cut_features(network, (0, 3, 6, 8, 10), names), neck_stage(6))


def _mobilenet_v3_stages(network: nn.Module) -> tuple[Stage, ...]:
    # A stage begins where an inverted residual halves the resolution (Howard et al., 2019, tables 1 and 2).
    last = len(network.features) - 1  # type: ignore[arg-type]
    halving = [index for index in _halving_layers(network, nn.Conv2d) if index >= 2]
    names = ["stem", *(f"stage{n}" for n in range(1, len(halving) + 2)), "head_conv"]
    return (*cut_features(network, [0, 1, *halving, last], names), neck_stage(2))


def _convnext_stages(network: nn.Module) -> tuple[Stage, ...]:
    return (*four_stages(network), neck_stage(1, flatten_first=False))


def _squeezenet_stages(network: nn.Module) -> tuple[Stage, ...]:
    pools = _halving_layers(network, nn.MaxPool2d)
    return tuple(cut_features(network, [0, *pools], ["stem", *(f"stage{n}" for n in range(1, len(pools) + 1))]))


def _squeezenet_network(name: str, num_classes: int, image_size: int) -> nn.Module:
    """SqueezeNet with a linear classifier on the pooled features.

    Torchvision's own head is a convolution with a ReLU on the map: no vector goes into it, and logits below zero
    cannot be learnt back. Its features keep their names; the head is new in any case.
    """
    network: nn.Module = models.get_model(name, weights=None, num_classes=num_classes)
    network.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, num_classes))
    return network


def _squeezenet_average(network: nn.Module, features: Tensor) -> Tensor:
    pool: nn.Module = find_member(network, "classifier.0")
    return torch.flatten(pool(features), 1)


def _inception_options(image_size: int) -> dict[str, Any]:
    """The auxiliary head only where its map is large enough for that head's 5 × 5 convolution."""
    return {"aux_logits": image_size >= _INCEPTION_SMALLEST_WITH_AUXILIARY, "init_weights": True}


def _custom_cnn_network(name: str, num_classes: int, image_size: int) -> nn.Module:
    return CustomCNN(num_classes)


def _of_dotted_layers(network: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names that torchvision's published weights still have: ``denselayer1.norm.1`` is ``denselayer1.norm1``."""
    return {
        re.sub(r"(?<=\.)(denselayer\d+\.(?:norm|conv))\.([12])(?=\.)", r"\1\2", name): value
        for name, value in weights.items()
    }


RESNET = Family(
    name="ResNet",
    stages=listed_stages({"stem": "conv1 bn1 relu maxpool", **{f"layer{n}": f"layer{n}" for n in (1, 2, 3, 4)}}),
    pool=global_average,
    classifier="fc",
)
REGNET = Family(
    name="RegNet",
    stages=listed_stages({"stem": "stem", **{f"block{n}": f"trunk_output.block{n}" for n in (1, 2, 3, 4)}}),
    pool=global_average,
    classifier="fc",
)
MOBILENET_V2 = Family(
    name="MobileNet v2", stages=_mobilenet_v2_stages, pool=adaptive_average, classifier="classifier.1"
)
EFFICIENTNET = Family(
    name="EfficientNet", stages=_efficientnet_stages, pool=global_average, classifier="classifier.1"
)
DENSENET = Family(
    name="DenseNet",
    stages=_densenet_stages,
    pool=adaptive_average,
    classifier="classifier",
    size_divisibility=_PAD_TO_32,
    smallest_image=29,
    adapt_weights=_of_dotted_layers,
)
VGG = Family(
    name="VGG",
    stages=_vgg_stages,
    pool=pooled_already,
    classifier="classifier.6",
    size_divisibility=_PAD_TO_32,
    smallest_image=32,
)
ALEXNET = Family(
    name="AlexNet", stages=_alexnet_stages, pool=pooled_already, classifier="classifier.6", smallest_image=63
)
MOBILENET_V3 = Family(
    name="MobileNet v3", stages=_mobilenet_v3_stages, pool=pooled_already, classifier="classifier.3"
)
MNASNET = Family(
    name="MNASNet",
    stages=listed_stages(
        {
            "stem": " ".join(f"layers.{index}" for index in range(8)),
            **{f"stage{n}": f"layers.{7 + n}" for n in range(1, 7)},
            "head_conv": "layers.14 layers.15 layers.16",
        }
    ),
    pool=mean_over_places,
    classifier="classifier.1",
)
SHUFFLENET_V2 = Family(
    name="ShuffleNet v2",
    stages=listed_stages(
        {"stem": "conv1 maxpool", "stage2": "stage2", "stage3": "stage3", "stage4": "stage4", "conv5": "conv5"}
    ),
    pool=mean_over_places,
    classifier="fc",
)
CONVNEXT = Family(
    name="ConvNeXt",
    stages=_convnext_stages,
    pool=pooled_already,
    classifier="classifier.2",
    size_divisibility=_PAD_TO_32,
    smallest_image=32,
    no_weight_decay=partial(parameters_named, ("layer_scale",)),
)
SQUEEZENET = Family(
    name="SqueezeNet",
    stages=_squeezenet_stages,
    pool=_squeezenet_average,
    classifier="classifier.2",
    build=_squeezenet_network,
    smallest_image=21,
)
GOOGLENET = Family(
    name="GoogLeNet",
    # Cut where the auxiliary heads branch off and before every pooling (Szegedy et al., 2015, table 1).
    stages=listed_stages(
        {
            "stem": "conv1 maxpool1",
            "conv3": "conv2 conv3",
            "inception3": "maxpool2 inception3a inception3b",
            "inception4a": "maxpool3 inception4a",
            "inception4d": "inception4b inception4c inception4d",
            "inception4e": "inception4e",
            "inception5": "maxpool4 inception5a inception5b",
        }
    ),
    pool=global_average,
    classifier="fc",
    builder_options=partial(always, {"aux_logits": True, "init_weights": True}),
    auxiliary_heads=(
        AuxiliaryHead("aux1", "inception4a", "aux1.fc2", 0.3),
        AuxiliaryHead("aux2", "inception4d", "aux2.fc2", 0.3),
    ),
    normalisation=_HALF,
    smallest_image=15,
)
INCEPTION_V3 = Family(
    name="Inception v3",
    # Szegedy et al., 2016, table 1; the auxiliary head takes the last 17 × 17 map.
    stages=listed_stages(
        {
            "stem": "Conv2d_1a_3x3 Conv2d_2a_3x3 Conv2d_2b_3x3 maxpool1",
            "conv4": "Conv2d_3b_1x1 Conv2d_4a_3x3 maxpool2",
            "mixed5": "Mixed_5b Mixed_5c Mixed_5d",
            "mixed6": "Mixed_6a Mixed_6b Mixed_6c Mixed_6d Mixed_6e",
            "mixed7": "Mixed_7a Mixed_7b Mixed_7c",
        }
    ),
    pool=global_average,
    classifier="fc",
    builder_options=_inception_options,
    auxiliary_heads=(AuxiliaryHead("AuxLogits", "mixed6", "AuxLogits.fc", 0.4),),
    normalisation=_HALF,
    smallest_image=75,
)
CUSTOM_CNN = Family(
    name="custom CNN",
    stages=listed_stages({name: name for name in ("stem", "stage1", "stage2", "stage3", "stage4")}),
    pool=global_average,
    classifier="fc",
    build=_custom_cnn_network,
    weights=no_weights,
)
