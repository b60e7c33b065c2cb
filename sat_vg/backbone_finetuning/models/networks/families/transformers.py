"""Families with attention: ViT, Swin, MaxViT."""

import re
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from sat_vg.backbone_finetuning.models.networks.families.family import (
    Family,
    always,
    four_stages,
    mean_of_patches,
    parameters_named,
    pooled_already,
)
from sat_vg.backbone_finetuning.models.position_embedding import resample_positions
from sat_vg.backbone_finetuning.models.stages import Stage, find_member
from sat_vg.backbone_finetuning.utils.errors import UserError

_VIT_PREFIX = 1  # the class token
_SWIN_PATCH = 4
_MAXVIT_WINDOW = 7
_SLOW_WINDOWS = "tracing its windows for all sizes takes minutes"
_MAXVIT_MULTIPLE = 32 * _MAXVIT_WINDOW  # windows and grids of 7 × 7 at the last stage's stride


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
    positions = resample_positions(encoder.pos_embedding, grid, _VIT_PREFIX)
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


def _vit_multiple(name: str) -> int:
    return int(name.rsplit("_", 1)[1])  # the patch


def _vit_options(image_size: int) -> dict[str, Any]:
    return {"image_size": image_size}


def _swin_stages(network: nn.Module) -> tuple[Stage, ...]:
    return (*four_stages(network), Stage("norm", ("norm",)))


def _swin_map(network: nn.Module, output: Tensor, image_hw: tuple[int, int]) -> Tensor:
    return output.permute(0, 3, 1, 2).contiguous()  # torchvision's Swin keeps channels last


def _swin_average(network: nn.Module, features: Tensor) -> Tensor:
    average_pool: nn.Module = network.avgpool  # type: ignore[assignment]
    return torch.flatten(average_pool(features.permute(0, 3, 1, 2)), 1)


def _in_partitions(layer: Any, value: Tensor) -> Tensor:
    """One of MaxViT's two attentions, on a map of any size.

    Torchvision's layer remembers the map's size it was built for; the partition needs none but the one it gets.
    Windows are 7 × 7 neighbours; a grid joins 7 × 7 places that are spread evenly over the map.
    """
    batch, channels, height, width = value.shape
    rows, columns = height // _MAXVIT_WINDOW, width // _MAXVIT_WINDOW
    is_grid = layer.partition_type == "grid"
    parts = (
        (_MAXVIT_WINDOW, rows, _MAXVIT_WINDOW, columns)
        if is_grid
        else (rows, _MAXVIT_WINDOW, columns, _MAXVIT_WINDOW)
    )
    order = (0, 3, 5, 2, 4, 1) if is_grid else (0, 2, 4, 3, 5, 1)
    tokens: Tensor = value.reshape(batch, channels, *parts).permute(order)
    tokens = tokens.reshape(batch, rows * columns, _MAXVIT_WINDOW**2, channels)
    tokens = tokens + layer.stochastic_dropout(layer.attn_layer(tokens))
    tokens = tokens + layer.stochastic_dropout(layer.mlp_layer(tokens))
    tokens = tokens.reshape(batch, rows, columns, _MAXVIT_WINDOW, _MAXVIT_WINDOW, channels)
    back = (0, 5, 3, 1, 4, 2) if is_grid else (0, 5, 1, 3, 2, 4)
    return tokens.permute(back).reshape(batch, channels, height, width)


def _maxvit_block(member: str, network: nn.Module, value: Tensor) -> Tensor:
    block: Any = find_member(network, member)
    for layer in block.layers:
        value = layer.layers.MBconv(value)
        value = _in_partitions(layer.layers.window_attention, value)
        value = _in_partitions(layer.layers.grid_attention, value)
    return value


def _maxvit_stages(network: nn.Module) -> tuple[Stage, ...]:
    blocks = [
        Stage(f"block{n}", (f"blocks.{n - 1}",), partial(_maxvit_block, f"blocks.{n - 1}")) for n in (1, 2, 3, 4)
    ]
    neck = Stage(
        "neck", tuple(f"classifier.{position}" for position in range(5)), gives_map=False
    )  # with its pooling
    return (Stage("stem", ("stem",)), *blocks, neck)


def _maxvit_options(image_size: int) -> dict[str, Any]:
    return {"input_size": (image_size, image_size)}


def _of_old_mlp(network: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of before torchvision 0.14, which its published ViT weights still have: ``mlp.linear_1`` is ``mlp.0``."""
    return {
        re.sub(r"(?<=\.mlp\.)linear_([12])(?=\.)", lambda match: str(3 * int(match[1]) - 3), name): value
        for name, value in weights.items()
    }


VIT = Family(
    name="ViT",
    stages=_vit_stages,
    pool=_class_token,
    classifier="heads.head",
    to_map=_vit_map,
    size_divisibility=_vit_patch_size,
    position_embedding="encoder.pos_embedding",
    num_prefix_tokens=_VIT_PREFIX,
    builder_options=_vit_options,
    image_multiple=_vit_multiple,
    no_weight_decay=partial(parameters_named, ("class_token", "pos_embedding")),
    adapt_weights=_of_old_mlp,
    patch_average=partial(always, partial(mean_of_patches, _VIT_PREFIX)),
)
SWIN = Family(
    name="Swin",
    stages=_swin_stages,
    pool=_swin_average,
    classifier="head",
    to_map=_swin_map,
    # Windows and mergings pad by themselves; the patch embedding would cut off what does not fill a patch.
    size_divisibility=partial(always, _SWIN_PATCH),
    why_traced_at_one_size=_SLOW_WINDOWS,
    # cpb_mlp gives Swin v2 its position biases; left alone as by its authors (Liu et al., 2022).
    no_weight_decay=partial(parameters_named, ("relative_position_bias_table", "logit_scale", "cpb_mlp")),
)
MAXVIT = Family(
    name="MaxViT",
    stages=_maxvit_stages,
    pool=pooled_already,
    classifier="classifier.5",
    size_divisibility=partial(always, _MAXVIT_MULTIPLE),
    builder_options=_maxvit_options,
    image_multiple=partial(always, _MAXVIT_MULTIPLE),
    why_traced_at_one_size=_SLOW_WINDOWS,
    no_weight_decay=partial(parameters_named, ("relative_position_bias_table",)),
)
