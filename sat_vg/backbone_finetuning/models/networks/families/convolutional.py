"""Families of convolutional networks: where their stages, their features and their head are."""

import re
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from sat_vg.backbone_finetuning.models.networks.custom_cnn import CustomCNN
from sat_vg.backbone_finetuning.models.networks.families.family import (
    AuxiliaryHead,
    Family,
    adaptive_average,
    cut_features,
    divisible_by,
    four_stages,
    global_average,
    mean_over_places,
    neck_stage,
    no_weights,
    parameters_named,
    pooled_already,
    torchvision_built,
)
from sat_vg.backbone_finetuning.models.stages import Stage, find_member


def _resnet_stages(network: nn.Module) -> tuple[Stage, ...]:
    layers = tuple(Stage(name, (name,)) for name in ("layer1", "layer2", "layer3", "layer4"))
    return (Stage("stem", ("conv1", "bn1", "relu", "maxpool")), *layers)


def _grouped_features(network: nn.Module, groups: Sequence[int]) -> tuple[Stage, ...]:
    """Stages over ``network.features``: the stem, groups of so many blocks, and the last convolution."""
    result = [Stage("stem", ("features.0",))]
    start = 1
    for number, size in enumerate(groups, start=1):
        members = tuple(f"features.{index}" for index in range(start, start + size))
        result.append(Stage(f"stage{number}", members))
        start += size
    return (*result, Stage("head_conv", (f"features.{start}",)))


def _mobilenet_v2_stages(network: nn.Module) -> tuple[Stage, ...]:
    # The seven settings of inverted residuals (Sandler et al., 2018, table 2).
    return _grouped_features(network, (1, 2, 3, 4, 3, 3, 1))


def _efficientnet_stages(network: nn.Module) -> tuple[Stage, ...]:
    features: nn.Sequential = network.features  # type: ignore[assignment]
    return _grouped_features(network, (1,) * (len(features) - 2))


def _regnet_stages(network: nn.Module) -> tuple[Stage, ...]:
    blocks = tuple(Stage(f"block{n}", (f"trunk_output.block{n}",)) for n in (1, 2, 3, 4))
    return (Stage("stem", ("stem",)), *blocks)


def _dense_norm(network: nn.Module, features: Tensor) -> Tensor:
    return nn.functional.relu(find_member(network, "features.norm5")(features))


def _densenet_stages(network: nn.Module) -> tuple[Stage, ...]:
    names = ("conv0", "norm0", "relu0", "pool0")
    blocks = [
        Stage(f"block{n}", ((f"features.transition{n - 1}",) if n > 1 else ()) + (f"features.denseblock{n}",))
        for n in (1, 2, 3, 4)
    ]
    stem = Stage("stem", tuple(f"features.{name}" for name in names))
    return (stem, *blocks, Stage("norm", ("features.norm5",), _dense_norm))


def _vgg_stages(network: nn.Module) -> tuple[Stage, ...]:
    features: nn.Sequential = network.features  # type: ignore[assignment]
    pools = [index for index, layer in enumerate(features) if isinstance(layer, nn.MaxPool2d)]
    starts = [0, *(index + 1 for index in pools[:-1])]
    return (*cut_features(network, starts, [f"block{n}" for n in range(1, 6)]), neck_stage(0, 1, 2, 3, 4))


def _alexnet_stages(network: nn.Module) -> tuple[Stage, ...]:
    names = [f"conv{n}" for n in range(1, 6)]
    return (*cut_features(network, (0, 3, 6, 8, 10), names), neck_stage(0, 1, 2, 3, 4, 5))


def _mobilenet_v3_stages(network: nn.Module) -> tuple[Stage, ...]:
    # A stage begins where an inverted residual halves the resolution (Howard et al., 2019, tables 1 and 2).
    features: nn.Sequential = network.features  # type: ignore[assignment]
    last = len(features) - 1
    halving = [
        index
        for index in range(2, last)
        if any(isinstance(m, nn.Conv2d) and m.stride[0] == 2 for m in features[index].modules())
    ]
    starts = [0, 1, *halving, last]
    names = ["stem", *(f"stage{n}" for n in range(1, len(halving) + 2)), "head_conv"]
    return (*cut_features(network, starts, names), neck_stage(0, 1))


def _mnasnet_stages(network: nn.Module) -> tuple[Stage, ...]:
    groups = {
        "stem": range(0, 8),
        **{f"stage{n}": range(7 + n, 8 + n) for n in range(1, 7)},
        "head_conv": range(14, 17),
    }
    return tuple(Stage(name, tuple(f"layers.{index}" for index in span)) for name, span in groups.items())


def _shufflenet_stages(network: nn.Module) -> tuple[Stage, ...]:
    names = ("stage2", "stage3", "stage4", "conv5")
    return (Stage("stem", ("conv1", "maxpool")), *(Stage(name, (name,)) for name in names))


def _convnext_stages(network: nn.Module) -> tuple[Stage, ...]:
    return (*four_stages(network), neck_stage(0, flatten_first=False))


def _squeezenet_stages(network: nn.Module) -> tuple[Stage, ...]:
    features: nn.Sequential = network.features  # type: ignore[assignment]
    pools = [index for index, layer in enumerate(features) if isinstance(layer, nn.MaxPool2d)]
    return tuple(cut_features(network, [0, *pools], ["stem", *(f"stage{n}" for n in range(1, len(pools) + 1))]))


def _squeezenet_network(name: str, num_classes: int, image_size: int) -> nn.Module:
    """SqueezeNet with a linear classifier on the pooled features.

    Torchvision's own head is a convolution with a ReLU on the map: no vector goes into it, and logits below zero
    cannot be learnt back. Its features keep their names; the head is new in any case.
    """
    network = torchvision_built(name, num_classes)
    network.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, num_classes))
    return network


def _squeezenet_average(network: nn.Module, features: Tensor) -> Tensor:
    pool: nn.Module = find_member(network, "classifier.0")
    return torch.flatten(pool(features), 1)


def _googlenet_stages(network: nn.Module) -> tuple[Stage, ...]:
    # Cut where the auxiliary heads branch off and before every pooling (Szegedy et al., 2015, table 1).
    return (
        Stage("stem", ("conv1", "maxpool1")),
        Stage("conv3", ("conv2", "conv3")),
        Stage("inception3", ("maxpool2", "inception3a", "inception3b")),
        Stage("inception4a", ("maxpool3", "inception4a")),
        Stage("inception4d", ("inception4b", "inception4c", "inception4d")),
        Stage("inception4e", ("inception4e",)),
        Stage("inception5", ("maxpool4", "inception5a", "inception5b")),
    )


def _googlenet_network(name: str, num_classes: int, image_size: int) -> nn.Module:
    return torchvision_built(name, num_classes, aux_logits=True, transform_input=False, init_weights=True)


_INCEPTION_SMALLEST_WITH_AUXILIARY = 299


def _inception_stages(network: nn.Module) -> tuple[Stage, ...]:
    # Szegedy et al., 2016, table 1; the auxiliary head takes the last 17 × 17 map.
    return (
        Stage("stem", ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1")),
        Stage("conv4", ("Conv2d_3b_1x1", "Conv2d_4a_3x3", "maxpool2")),
        Stage("mixed5", tuple(f"Mixed_5{letter}" for letter in "bcd")),
        Stage("mixed6", tuple(f"Mixed_6{letter}" for letter in "abcde")),
        Stage("mixed7", tuple(f"Mixed_7{letter}" for letter in "abc")),
    )


def _inception_network(name: str, num_classes: int, image_size: int) -> nn.Module:
    """Inception v3; with its auxiliary head where the map is large enough for that head's 5 × 5 convolution."""
    return torchvision_built(
        name,
        num_classes,
        aux_logits=image_size >= _INCEPTION_SMALLEST_WITH_AUXILIARY,
        transform_input=False,
        init_weights=True,
    )


def _custom_cnn_stages(network: nn.Module) -> tuple[Stage, ...]:
    return tuple(Stage(name, (name,)) for name in ("stem", "stage1", "stage2", "stage3", "stage4"))


def _custom_cnn_network(name: str, num_classes: int, image_size: int) -> nn.Module:
    return CustomCNN(num_classes)


_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # what the Inception networks were trained with: images in [-1, 1]
_PAD_TO_32 = partial(divisible_by, 32)  # their poolings and strided layers would cut off the last row or column


def _of_dotted_layers(network: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names that torchvision's published weights still have: ``denselayer1.norm.1`` is ``denselayer1.norm1``."""
    return {
        re.sub(r"(?<=\.)(denselayer\d+\.(?:norm|conv))\.([12])(?=\.)", r"\1\2", name): value
        for name, value in weights.items()
    }


RESNET = Family(name="ResNet", stages=_resnet_stages, pool=global_average, classifier="fc")
MOBILENET_V2 = Family(
    name="MobileNet v2", stages=_mobilenet_v2_stages, pool=adaptive_average, classifier="classifier.1"
)
EFFICIENTNET = Family(
    name="EfficientNet", stages=_efficientnet_stages, pool=global_average, classifier="classifier.1"
)
REGNET = Family(name="RegNet", stages=_regnet_stages, pool=global_average, classifier="fc")
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
MNASNET = Family(name="MNASNet", stages=_mnasnet_stages, pool=mean_over_places, classifier="classifier.1")
SHUFFLENET_V2 = Family(name="ShuffleNet v2", stages=_shufflenet_stages, pool=mean_over_places, classifier="fc")
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
    stages=_googlenet_stages,
    pool=global_average,
    classifier="fc",
    build=_googlenet_network,
    auxiliary_heads=(
        AuxiliaryHead("aux1", "inception4a", "aux1.fc2", 0.3),
        AuxiliaryHead("aux2", "inception4d", "aux2.fc2", 0.3),
    ),
    normalisation=_HALF,
    smallest_image=15,
)
INCEPTION_V3 = Family(
    name="Inception v3",
    stages=_inception_stages,
    pool=global_average,
    classifier="fc",
    build=_inception_network,
    auxiliary_heads=(AuxiliaryHead("AuxLogits", "mixed6", "AuxLogits.fc", 0.4),),
    normalisation=_HALF,
    smallest_image=75,
)
CUSTOM_CNN = Family(
    name="custom CNN",
    stages=_custom_cnn_stages,
    pool=global_average,
    classifier="fc",
    build=_custom_cnn_network,
    weights=no_weights,
)
