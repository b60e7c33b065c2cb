"""Attention maps of vision transformers."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sat_vg.backbone_finetuning.models.backbones import BackboneRow
from sat_vg.backbone_finetuning.models.families import VIT
from sat_vg.backbone_finetuning.models.stages import Stage, find_member
from sat_vg.backbone_finetuning.utils.errors import ConfigError


@torch.no_grad()
def attention_maps(
    network: nn.Module, row: BackboneRow, stages: Sequence[Stage], images: Tensor, layer_idx: int
) -> Tensor:
    """Attention weights ``[B, heads, tokens, tokens]`` of block ``layer_idx`` for ``images [B, 3, H, W]``.

    The attention is computed once more with its weights asked for, since the fused attention that a forward pass
    uses never holds them.

    Raises:
        ConfigError: the backbone has no attention, or no such block.
    """
    if row.family is not VIT:
        raise ConfigError(f"get_attention_maps: {row.name} has no attention blocks; use a ViT such as vit_b_16")
    blocks = [position for position, stage in enumerate(stages) if stage.name.startswith("block")]
    if not -len(blocks) <= layer_idx < len(blocks):
        raise ConfigError(
            f"layer_idx = {layer_idx}: {row.name} has blocks 0 to {len(blocks) - 1}, or -1 for the last"
        )
    position = blocks[layer_idx]
    was_training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        tokens = images
        for stage in stages[:position]:
            tokens = stage.run(network, tokens)
        block = find_member(network, stages[position].members[0])
        normed = block.ln_1(tokens)
        _, weights = block.self_attention(normed, normed, normed, need_weights=True, average_attn_weights=False)
    finally:
        for module in was_training:
            module.training = True
    result: Tensor = weights
    return result
