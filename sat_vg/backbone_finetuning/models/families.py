"""How each family of torchvision networks is cut into stages, and where its features and its head are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from sat_vg.backbone_finetuning.models.position_embedding import positions_for
from sat_vg.backbone_finetuning.models.stages import Stage
from sat_vg.backbone_finetuning.utils.errors import UserError


def _output_is_map(network: nn.Module, output: Tensor, image_hw: tuple[int, int]) -> Tensor:
    return output


def _any_size(network: nn.Module) -> int:
    return 1


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
        fixed_size: whether the network is built for one image size.
    """

    name: str
    stages: Callable[[nn.Module], tuple[Stage, ...]]
    pool: Callable[[nn.Module, Tensor], Tensor]
    classifier: str
    to_map: Callable[[nn.Module, Tensor, tuple[int, int]], Tensor] = _output_is_map
    size_divisibility: Callable[[nn.Module], int] = _any_size
    position_embedding: str | None = None
    num_prefix_tokens: int = 0
    fixed_size: bool = False


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
    fixed_size=True,
)
