"""Attention: maps of ViT, torchvision's and timm's, and dropout in training."""

import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torchvision.models.swin_transformer import ShiftedWindowAttention
from torchvision.models.vision_transformer import EncoderBlock

from sat_vg.backbone_finetuning.models.freezing import in_eval_mode
from sat_vg.backbone_finetuning.models.networks.table import BACKBONES, BackboneRow
from sat_vg.backbone_finetuning.models.stages import Stage, find_member
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.printable import counted

_LARGEST_RESULT = 2 * 2**30  # bytes


def set_attention_dropout(network: nn.Module, probability: float) -> bool:
    """Let every attention of a network drop weights in training with this probability (Vaswani et al., 2017).

    Its parameters and random start stay what they are; 0 switches it off.

    Returns:
        Whether the network has attention that can drop weights: torchvision's ViT and Swin, and timm's of that kind.
    """
    found = False
    for module in network.modules():
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = probability
        elif isinstance(module, ShiftedWindowAttention):  # of Swin v2 as well
            module.attention_dropout = probability
        elif isinstance(getattr(module, "attn_drop", None), nn.Dropout):  # timm's
            module.attn_drop.p = probability  # type: ignore[union-attr]
        else:
            continue
        found = True
    return found


class AttentionOnGrid(NamedTuple):
    """Attention weights of one block."""

    weights: Tensor  # [B, heads, tokens, tokens], as the block applies them
    grid: tuple[int, int]  # height and width of the map that the patches form
    num_prefix_tokens: int  # before the patches: the class token, and what some networks of timm have beside it
    of_class_token: bool  # whether the classifier sees the class token, which is token 0, and not an average


def attention_blocks(network: nn.Module, row: BackboneRow, stages: Sequence[Stage]) -> list[int]:
    """The positions of the stages that have attention over the whole image; none where the network is no ViT."""
    members = [find_member(network, stage.members[0]) for stage in stages]
    if row.family.name == "ViT":
        return [place for place, member in enumerate(members) if isinstance(member, EncoderBlock)]
    trunk: Any = getattr(network, "trunk", None)
    if trunk is None or trunk.cut.kind != "vit":
        return []
    attention = importlib.import_module("timm.models.vision_transformer").Attention
    return [place for place, member in enumerate(members) if isinstance(getattr(member, "attn", None), attention)]


@torch.no_grad()
def attention_on_grid(
    network: nn.Module, row: BackboneRow, stages: Sequence[Stage], images: Tensor, layer_idx: int
) -> AttentionOnGrid:
    """Attention weights of one block, as the block applies them, and what is needed to draw them.

    They are computed once more, since the fused attention of a forward pass never holds them. ``network`` may be any
    module with the backbone's children, such as a feature extractor.

    Raises:
        ConfigError: as ``FineTuneModel.get_attention_maps``.
    """
    blocks = attention_blocks(network, row, stages)
    if not blocks:
        with_attention = ", ".join(name for name, other in BACKBONES.items() if other.family.name == "ViT")
        reason = "attends within windows only" if "swin" in row.name else "has no attention that could be shown"
        raise ConfigError(
            f"get_attention_maps: {row.name} {reason}; these have maps of the whole image: {with_attention}, and "
            "the ViTs of timm. "
            "Grad-CAM (explain) is for every backbone"
        )
    if not -len(blocks) <= layer_idx < len(blocks):
        raise ConfigError(
            f"layer_idx = {layer_idx}: {row.name} has blocks 0 to {len(blocks) - 1}, or -1 for the last"
        )
    position = blocks[layer_idx]
    block, trunk = find_member(network, stages[position].members[0]), getattr(network, "trunk", None)
    with in_eval_mode(network):
        tokens = images
        for stage in stages[:position]:
            tokens = stage.run(network, tokens)
        grid = row.family.to_map(network, tokens, (images.shape[-2], images.shape[-1])).shape[-2:]
        layer = block.self_attention if trunk is None else block.attn
        _refuse_too_large(row.name, (len(images), layer.num_heads, tokens.shape[1]), tokens)
        weights = _weights(block, tokens) if trunk is None else _weights_of_timm(block, tokens)
    takes_token = row.pool == "default" and (trunk is None or trunk.global_pool == "token")
    return AttentionOnGrid(weights, (grid[0], grid[1]), tokens.shape[1] - grid[0] * grid[1], takes_token)


def _weights(block: Any, tokens: Tensor) -> Tensor:
    """The attention weights of one of torchvision's blocks on its input."""
    normed = block.ln_1(tokens)
    _, weights = block.self_attention(normed, normed, normed, need_weights=True, average_attn_weights=False)
    return cast(Tensor, weights)


def _weights_of_timm(block: Any, tokens: Tensor) -> Tensor:
    """Those of one of timm's, which are what its dropout gets where the attention is not fused."""
    attention, seen = block.attn, []
    was_fused, attention.fused_attn = attention.fused_attn, False
    handle = attention.attn_drop.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    try:
        block(tokens)
    finally:
        handle.remove()
        attention.fused_attn = was_fused
    return cast(Tensor, seen[0])


def _refuse_too_large(name: str, shape: tuple[int, int, int], tokens: Tensor) -> None:
    """Refuse to make a tensor that would fill the memory; ``shape`` is batch, heads and number of tokens."""
    batch, num_heads, num_tokens = shape
    of_one_image = num_heads * num_tokens**2 * tokens.element_size()
    if batch * of_one_image > _LARGEST_RESULT:
        fits = _LARGEST_RESULT // of_one_image
        remedy = f"pass at most {counted(fits, 'image')} at a time" if fits else "pass smaller images"
        raise ConfigError(
            f"the attention of {name} on {counted(batch, 'image')} would be [{batch}, "
            f"{num_heads}, {num_tokens}, {num_tokens}], {batch * of_one_image / 2**30:.1f} GiB (2 GiB are allowed); "
            f"{remedy}"
        )
