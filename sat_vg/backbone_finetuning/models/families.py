"""How each family of torchvision networks is cut into stages, and where its features and its head are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from sat_vg.backbone_finetuning.models.position_embedding import positions_for
from sat_vg.backbone_finetuning.models.stages import Stage, find_member
from sat_vg.backbone_finetuning.utils.errors import UserError


def _output_is_map(network: nn.Module, output: Tensor, image_hw: tuple[int, int]) -> Tensor:
    return output


def _any_size(network: nn.Module) -> int:
    return 1


def _no_options(image_size: int) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Family:
    """Networks that are cut in the same way.

    Attributes:
        name: for messages.
        stages: the network's stages, in order of depth.
        pool: ``(network, last stage's output) -> [B, D]``: the vector that the classifier sees.
        classifier: dotted name of the last linear layer.
        to_map: ``(network, a stage's output, image height and width) -> [B, C, h, w]``.
        size_divisibility: ``network ->`` what the image's height and width must be multiples of.
        position_embedding: dotted name of the parameter that depends on the image size, if there is one.
        num_prefix_tokens: tokens without a place in the image, such as the class token.
        build_options: ``image size -> `` further arguments of torchvision's builder.
    """

    name: str
    stages: Callable[[nn.Module], tuple[Stage, ...]]
    pool: Callable[[nn.Module, Tensor], Tensor]
    classifier: str
    to_map: Callable[[nn.Module, Tensor, tuple[int, int]], Tensor] = _output_is_map
    size_divisibility: Callable[[nn.Module], int] = _any_size
    position_embedding: str | None = None
    num_prefix_tokens: int = 0
    build_options: Callable[[int], dict[str, Any]] = _no_options


def _global_average(network: nn.Module, features: Tensor) -> Tensor:
    average_pool: nn.Module = network.avgpool  # type: ignore[assignment]
    return torch.flatten(average_pool(features), 1)


def _mobilenet_average(network: nn.Module, features: Tensor) -> Tensor:
    return torch.flatten(nn.functional.adaptive_avg_pool2d(features, (1, 1)), 1)


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


_VIT_PREFIX = 1  # the class token


def _vit_patch_size(network: nn.Module) -> int:
    projection: nn.Conv2d = network.conv_proj  # type: ignore[assignment]
    return int(projection.kernel_size[0])


def _vit_patch_embed(network: nn.Module, images: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    patch = _vit_patch_size(network)
    if height % patch or width % patch:
        raise UserError(
            f"images of {height} × {width} pixels cannot be cut into patches of {patch}; resize or pad them to "
            f"multiples of {patch} (the feature extractor does so by itself)"
        )
    projection: nn.Module = network.conv_proj  # type: ignore[assignment]
    encoder: Any = network.encoder
    class_token: Tensor = network.class_token  # type: ignore[assignment]
    patches = projection(images)  # [B, C, h, w]
    grid = (patches.shape[-2], patches.shape[-1])
    tokens = patches.flatten(2).transpose(1, 2)
    tokens = torch.cat([class_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
    positions = positions_for(network, encoder.pos_embedding, grid, _VIT_PREFIX)
    return cast(Tensor, encoder.dropout(tokens + positions))


def _vit_stages(network: nn.Module) -> tuple[Stage, ...]:
    encoder: Any = network.encoder
    blocks = [
        Stage(f"block{index}", (f"encoder.layers.{name}",))
        for index, (name, _) in enumerate(encoder.layers.named_children())
    ]
    patch_embed = Stage(
        "patch_embed",
        ("conv_proj", "class_token", "encoder.pos_embedding", "encoder.dropout"),
        _vit_patch_embed,
    )
    return (patch_embed, *blocks, Stage("norm", ("encoder.ln",)))


def _class_token(network: nn.Module, tokens: Tensor) -> Tensor:
    return tokens[:, 0]


def _vit_map(network: nn.Module, tokens: Tensor, image_hw: tuple[int, int]) -> Tensor:
    patch = _vit_patch_size(network)
    grid = (image_hw[0] // patch, image_hw[1] // patch)
    patches: Tensor = tokens[:, _VIT_PREFIX:].transpose(1, 2)
    return torch.unflatten(patches, 2, grid).contiguous()


def _vit_options(image_size: int) -> dict[str, Any]:
    return {"image_size": image_size}


def _pooled_already(network: nn.Module, vector: Tensor) -> Tensor:
    return vector


def _mean_over_places(network: nn.Module, features: Tensor) -> Tensor:
    return features.mean([2, 3])


def _neck(layers: Sequence[str], flatten_first: bool, network: nn.Module, features: Tensor) -> Tensor:
    """Pool, and apply the layers of torchvision's classifier that come before its last linear one."""
    average_pool: nn.Module = network.avgpool  # type: ignore[assignment]
    value: Tensor = average_pool(features)
    if flatten_first:
        value = torch.flatten(value, 1)
    for layer in layers:
        value = find_member(network, layer)(value)
    return torch.flatten(value, 1)


def _neck_stage(*positions: int, flatten_first: bool = True) -> Stage:
    members = tuple(f"classifier.{position}" for position in positions)
    return Stage("neck", members, partial(_neck, members, flatten_first), gives_map=False)


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


def _cut_features(network: nn.Module, starts: Sequence[int], names: Sequence[str]) -> list[Stage]:
    """Stages over ``network.features`` that begin at the given positions."""
    features: nn.Sequential = network.features  # type: ignore[assignment]
    ends = [*starts[1:], len(features)]
    return [
        Stage(name, tuple(f"features.{index}" for index in range(start, end)))
        for name, start, end in zip(names, starts, ends, strict=True)
    ]


def _vgg_stages(network: nn.Module) -> tuple[Stage, ...]:
    features: nn.Sequential = network.features  # type: ignore[assignment]
    pools = [index for index, layer in enumerate(features) if isinstance(layer, nn.MaxPool2d)]
    starts = [0, *(index + 1 for index in pools[:-1])]
    return (*_cut_features(network, starts, [f"block{n}" for n in range(1, 6)]), _neck_stage(0, 1, 2, 3, 4))


def _alexnet_stages(network: nn.Module) -> tuple[Stage, ...]:
    names = [f"conv{n}" for n in range(1, 6)]
    return (*_cut_features(network, (0, 3, 6, 8, 10), names), _neck_stage(0, 1, 2, 3, 4, 5))


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
    return (*_cut_features(network, starts, names), _neck_stage(0, 1))


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


def _four_stages(network: nn.Module) -> list[Stage]:
    """Stem, then four stages of which each but the first begins with its downsampling."""
    return _cut_features(network, (0, 1, 2, 4, 6), ("stem", "stage1", "stage2", "stage3", "stage4"))


def _convnext_stages(network: nn.Module) -> tuple[Stage, ...]:
    return (*_four_stages(network), _neck_stage(0, flatten_first=False))


def _swin_stages(network: nn.Module) -> tuple[Stage, ...]:
    return (*_four_stages(network), Stage("norm", ("norm",)))


def _swin_map(network: nn.Module, output: Tensor, image_hw: tuple[int, int]) -> Tensor:
    return output.permute(0, 3, 1, 2).contiguous()  # torchvision's Swin keeps channels last


def _swin_average(network: nn.Module, features: Tensor) -> Tensor:
    average_pool: nn.Module = network.avgpool  # type: ignore[assignment]
    return torch.flatten(average_pool(features.permute(0, 3, 1, 2)), 1)


RESNET = Family("ResNet", _resnet_stages, _global_average, "fc")
MOBILENET_V2 = Family("MobileNet v2", _mobilenet_v2_stages, _mobilenet_average, "classifier.1")
EFFICIENTNET = Family("EfficientNet", _efficientnet_stages, _global_average, "classifier.1")
VIT = Family(
    "ViT",
    _vit_stages,
    _class_token,
    "heads.head",
    to_map=_vit_map,
    size_divisibility=_vit_patch_size,
    position_embedding="encoder.pos_embedding",
    num_prefix_tokens=_VIT_PREFIX,
    build_options=_vit_options,
)
REGNET = Family("RegNet", _regnet_stages, _global_average, "fc")
DENSENET = Family("DenseNet", _densenet_stages, _mobilenet_average, "classifier")
VGG = Family("VGG", _vgg_stages, _pooled_already, "classifier.6")
ALEXNET = Family("AlexNet", _alexnet_stages, _pooled_already, "classifier.6")
MOBILENET_V3 = Family("MobileNet v3", _mobilenet_v3_stages, _pooled_already, "classifier.3")
MNASNET = Family("MNASNet", _mnasnet_stages, _mean_over_places, "classifier.1")
SHUFFLENET_V2 = Family("ShuffleNet v2", _shufflenet_stages, _mean_over_places, "fc")
CONVNEXT = Family("ConvNeXt", _convnext_stages, _pooled_already, "classifier.2")
SWIN = Family("Swin", _swin_stages, _swin_average, "head", to_map=_swin_map)
