"""Attention maps of vision transformers: torchvision's ViT, Swin and Swin v2."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.swin_transformer import ShiftedWindowAttentionV2, SwinTransformerBlock, SwinTransformerBlockV2
from torchvision.models.vision_transformer import EncoderBlock

from sat_vg.backbone_finetuning.models.networks.table import BACKBONES, BackboneRow
from sat_vg.backbone_finetuning.models.stages import Stage, find_member
from sat_vg.backbone_finetuning.utils.errors import ConfigError

_FAMILIES = ("ViT", "Swin")  # those whose blocks are known here
_LARGEST_RESULT = 2 * 2**30  # bytes; early blocks of a Swin have 3136 tokens at 224 pixels
_OTHER_REGION = -100.0  # what torchvision adds to logits between tokens that only the cyclic shift brought together
_LARGEST_SCALE = math.log(100.0)  # of Swin v2's cosine attention (Liu et al., 2022, section 3.2)


def attention_maps(
    network: nn.Module, row: BackboneRow, stages: Sequence[Stage], images: Tensor, layer_idx: int
) -> Tensor:
    """Attention weights of one block, as the block applies them.

    They are computed once more, since the fused attention that a forward pass uses never holds them. In a ViT
    (Dosovitskiy et al., 2021) token 0 is the class token and each row sums to 1. In a Swin (Liu et al., 2021 and
    2022) the windows are joined to one matrix over the block's whole map, tokens row by row: it is zero between two
    tokens that share no window. Where torchvision pads the map to whole windows, the share that a token pays to the
    padding is left out and nothing is rescaled: rows of such windows sum to less than 1, those of all others to 1.

    Args:
        network: the backbone, or any module with the same children, such as a feature extractor.
        row: the backbone's row of the table.
        stages: the backbone's stages.
        images: ``[B, C, H, W]``, normalised.
        layer_idx: block, counted from 0 over the whole network in order of depth; negative from the end.

    Returns:
        ``[B, heads, tokens, tokens]``: row i holds how much token i takes from each token.

    Raises:
        ConfigError: the backbone has no attention, or no such block, or the result would be larger than 2 GiB.
    """
    weights, _ = attention_on_grid(network, row, stages, images, layer_idx)
    return weights


@torch.no_grad()
def attention_on_grid(
    network: nn.Module, row: BackboneRow, stages: Sequence[Stage], images: Tensor, layer_idx: int
) -> tuple[Tensor, tuple[int, int]]:
    """``attention_maps``, and the height and width of the map that the block's tokens form.

    Raises:
        ConfigError: as ``attention_maps``.
    """
    blocks = _attention_blocks(network, stages)
    if not blocks:
        known = ", ".join(name for name, other in BACKBONES.items() if other.family.name in _FAMILIES)
        raise ConfigError(f"get_attention_maps: {row.name} has no attention that could be shown; these have: {known}")
    if not -len(blocks) <= layer_idx < len(blocks):
        raise ConfigError(
            f"layer_idx = {layer_idx}: {row.name} has blocks 0 to {len(blocks) - 1}, or -1 for the last"
        )
    block = blocks[layer_idx]
    with in_eval_mode(network):
        tokens = _input_of(network, stages, block, images)
        grid = row.family.to_map(network, tokens, (images.shape[-2], images.shape[-1])).shape[-2:]
        num_tokens = row.family.num_prefix_tokens + grid.numel()
        _refuse_what_is_too_large(row.name, layer_idx % len(blocks), _num_heads(block), num_tokens, tokens)
        weights = (
            _swin_weights(block, tokens) if isinstance(block, SwinTransformerBlock) else _vit_weights(block, tokens)
        )
    return weights, (grid[0], grid[1])


@contextmanager
def in_eval_mode(module: nn.Module) -> Iterator[None]:
    """Put ``module`` into eval mode; afterwards each of its parts is in the mode that it was in before."""
    was_training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in was_training:
            part.training = True


def _attention_blocks(network: nn.Module, stages: Sequence[Stage]) -> list[nn.Module]:
    """The blocks with attention that is known here, in order of depth."""
    return [
        module
        for stage in stages
        for module in stage.modules(network)
        if isinstance(module, (EncoderBlock, SwinTransformerBlock))
    ]


def _input_of(network: nn.Module, stages: Sequence[Stage], block: nn.Module, images: Tensor) -> Tensor:
    """What ``block`` gets: the stages before its own, then the layers before it."""
    value = images
    for stage in stages:
        if all(module is not block for module in stage.modules(network)):
            value = stage.run(network, value)
            continue
        for member in stage.members:
            layer: nn.Module = find_member(network, member)
            for part in layer if isinstance(layer, nn.Sequential) else (layer,):
                if part is block:
                    return value
                value = part(value)
    raise AssertionError("the block was taken from these stages")


def _num_heads(block: Any) -> int:
    attention = block.attn if isinstance(block, SwinTransformerBlock) else block.self_attention
    return int(attention.num_heads)


def _refuse_what_is_too_large(name: str, index: int, num_heads: int, num_tokens: int, like: Tensor) -> None:
    """Refuse to make a tensor that would fill the memory.

    Raises:
        ConfigError: names its size and what to do.
    """
    batch = like.shape[0]
    of_one_image = num_heads * num_tokens**2 * like.element_size()
    if batch * of_one_image > _LARGEST_RESULT:
        fits = _LARGEST_RESULT // of_one_image
        remedy = f"pass at most {fits} images at a time" if fits else "pass smaller images"
        raise ConfigError(
            f"layer_idx = {index}: the attention of {name} on {batch} images would be [{batch}, {num_heads}, "
            f"{num_tokens}, {num_tokens}], {batch * of_one_image / 2**30:.1f} GiB (2 GiB are allowed); {remedy}, or "
            "ask for a deeper block where that has fewer tokens"
        )


def _vit_weights(block: Any, tokens: Tensor) -> Tensor:
    normed = block.ln_1(tokens)
    _, weights = block.self_attention(normed, normed, normed, need_weights=True, average_attn_weights=False)
    return cast(Tensor, weights)


def _swin_weights(block: Any, tokens: Tensor) -> Tensor:
    """Attention of a Swin block on ``tokens [B, h, w, C]``, joined to ``[B, heads, h * w, h * w]``."""
    attention = block.attn
    if not isinstance(block, SwinTransformerBlockV2):  # v2 has its norm after the attention
        tokens = block.norm1(tokens)
    batch, height, width, _ = tokens.shape
    places, regions = _windows((height, width), attention.window_size, attention.shift_size, tokens.device)
    with_padding = functional.pad(
        tokens.flatten(1, 2), (0, 0, 0, 1)
    )  # one more token of zeros stands for all padding
    logits = _window_logits(attention, with_padding[:, places])  # [B, windows, heads, n, n]
    is_apart = regions[:, :, None] != regions[:, None, :]
    logits = logits + _OTHER_REGION * is_apart[:, None].to(logits.dtype)
    weights = functional.softmax(logits, dim=-1).transpose(1, 2)  # [B, heads, windows, n, n]
    count = height * width
    rows, columns = torch.broadcast_tensors(places[:, :, None], places[:, None, :])
    is_real = (rows < count) & (columns < count)
    joined = weights.new_zeros(batch, weights.shape[1], count, count)
    joined[:, :, rows[is_real], columns[is_real]] = weights[:, :, is_real]
    return joined


def _windows(
    grid: tuple[int, int], window: Sequence[int], shift: Sequence[int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Which tokens lie in which window.

    Returns:
        ``(places, regions)``, both ``[windows, tokens of a window]``: each token's index in the map, height * width
        for padding; and the number of the region it comes from, for attention stays within one region.
    """
    padded = [math.ceil(size / side) * side for size, side in zip(grid, window, strict=True)]
    # A map that fits into one window is not shifted.
    shifts = [0 if side >= size else step for size, side, step in zip(padded, window, shift, strict=True)]
    inside = torch.arange(grid[0] * grid[1], device=device).view(grid)
    missing = (0, padded[1] - grid[1], 0, padded[0] - grid[0])
    places = functional.pad(inside, missing, value=inside.numel()).roll((-shifts[0], -shifts[1]), dims=(0, 1))
    along = [_regions(*sizes, device) for sizes in zip(padded, window, shifts, strict=True)]
    regions = 3 * along[0][:, None] + along[1]
    return _cut(places, window), _cut(regions, window)


def _regions(size: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Along one axis, after the shift: 0 before the last window; in it 1, and 2 for what was rolled in."""
    position = torch.arange(size, device=device)
    if shift == 0:
        return torch.zeros_like(position)
    return (position >= size - window).long() + (position >= size - shift).long()


def _cut(plane: Tensor, window: Sequence[int]) -> Tensor:
    """``[height, width]`` → ``[windows, tokens of a window]``."""
    tiles: Tensor = plane.unflatten(1, (-1, window[1])).unflatten(0, (-1, window[0]))  # [rows, wh, columns, ww]
    return tiles.transpose(1, 2).flatten(2).flatten(0, 1)


def _window_logits(attention: Any, windows: Tensor) -> Tensor:
    """Logits ``[B, windows, heads, n, n]`` of tokens ``[B, windows, n, C]``."""
    heads = attention.num_heads
    query_weight, key_weight, _ = attention.qkv.weight.chunk(3)
    query_bias, key_bias, _ = (None,) * 3 if attention.qkv.bias is None else attention.qkv.bias.chunk(3)
    is_v2 = isinstance(attention, ShiftedWindowAttentionV2)
    if is_v2:
        key_bias = None  # v2's keys have none, whatever the parameter holds
    query, key = (
        functional.linear(windows, weight, bias).unflatten(-1, (heads, -1)).transpose(2, 3)
        for weight, bias in ((query_weight, query_bias), (key_weight, key_bias))
    )
    if is_v2:
        similarity = functional.normalize(query, dim=-1) @ functional.normalize(key, dim=-1).transpose(-2, -1)
        scaled = similarity * attention.logit_scale.clamp(max=_LARGEST_SCALE).exp()
    else:
        scaled = query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)
    return cast(Tensor, scaled + attention.get_relative_position_bias())
