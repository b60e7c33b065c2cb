"""The network: feature maps and words → a score and a box at each place of a grid; and its loss."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import box_convert, generalized_box_iou_loss

from sat_vg.backbone_finetuning import FeatureExtractor
from sat_vg.backbone_finetuning.utils.errors import UserError
from sat_vg.grounding.words import PADDING

_MOST_PLACES = 400  # as many as TransVG has: 640 pixels at stride 32
_L1, _GIOU = 5.0, 2.0  # weights of DETR (Carion et al., 2020)
_WIDTH = 0.2  # standard deviation of the target around the box's centre, in widths and heights of the box


@dataclass(frozen=True)
class Sizes:
    """Sizes of a network: the fields of ``GroundingConfig`` with these names."""

    image_size: int
    max_words: int
    width: int
    text_layers: int
    fusion_layers: int
    num_heads: int
    dropout: float


class MapProjection(nn.Module):
    """Maps of several strides → one map ``[I, width, h, w]`` at the grid's stride.

    Finer maps are brought to the grid by a convolution over as many pixels as a place has, coarser ones by bilinear
    interpolation; all are added.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], stride: int, width: int) -> None:
        super().__init__()
        ratios = [max(1, stride // own) for own in strides]
        self.projections = nn.ModuleList(
            nn.Sequential(nn.Conv2d(count, width, ratio, ratio), nn.GroupNorm(8, width))
            for count, ratio in zip(channels, ratios, strict=True)
        )

    def forward(self, maps: Sequence[Tensor], side: int) -> Tensor:
        """Maps ``[I, channels, h_i, w_i]`` → ``[I, width, side, side]``."""
        projected = [projection(one) for projection, one in zip(self.projections, maps, strict=True)]
        resized = [
            one if one.shape[-2:] == (side, side) else functional.interpolate(one, (side, side), mode="bilinear")
            for one in projected
        ]
        return torch.stack(resized).sum(0)


class Block(nn.Module):
    """A transformer encoder layer, normalised before each part (Xiong et al., 2020)."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor, is_padding: Tensor) -> Tensor:
        """Tokens ``[P, N, width]``, with a mask ``[P, N]`` that is True where there is none."""
        count, length, width = tokens.shape
        qkv = self.qkv(self.norm1(tokens)).view(count, length, 3, self.num_heads, width // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # [P, heads, N, width / heads]
        is_padding = is_padding[:, None, None]
        if tokens.device.type == "cpu":  # torch's fused kernel takes 5 times as long in bf16 as its parts do
            scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
            attended = scores.masked_fill(is_padding, -torch.inf).softmax(-1).to(value.dtype) @ value
        else:
            attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=~is_padding)
        attended = self.out(attended.transpose(1, 2).reshape(count, length, width))
        tokens = tokens + functional.dropout(attended, self.dropout, self.training)
        return tokens + functional.dropout(self.mlp(self.norm2(tokens)), self.dropout, self.training)


def blocks(sizes: Sizes, count: int) -> nn.ModuleList:
    """So many layers."""
    return nn.ModuleList(Block(sizes.width, sizes.num_heads, sizes.dropout) for _ in range(count))


class WordEncoder(nn.Module):
    """Numbers of words ``[P, T]`` → vectors ``[P, T, width]``: an embedding, positions and transformer layers."""

    def __init__(self, num_words: int, sizes: Sizes) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_words, sizes.width, padding_idx=PADDING)
        self.positions = nn.Parameter(0.02 * torch.randn(sizes.max_words, sizes.width))
        self.layers = blocks(sizes, sizes.text_layers)

    def forward(self, words: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors, and a mask ``[P, T]`` that is True where there is no word."""
        tokens, is_padding = self.embedding(words) + self.positions[: words.shape[1]], words == PADDING
        for layer in self.layers:
            tokens = layer(tokens, is_padding)
        return tokens, is_padding


class GroundingNetwork(nn.Module):
    """A backbone, a word encoder, fusion layers over words and places (Deng et al., 2021), and a head at each place.

    Every place of the grid gives a score and a box, as in one-stage grounding (Yang et al., 2019); the box of the
    place with the highest score is the answer.

    ``num_words`` counts padding and the unknown word; ``text`` is an encoder in place of own words, numbers
    ``[P, T]`` → vectors ``[P, T, width]`` and a mask.
    """

    def __init__(
        self, extractor: FeatureExtractor, num_words: int, sizes: Sizes, text: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.backbone = extractor
        # The grid is the finest one from stride 16 on that has no more than 400 places.
        fine = [
            one for one in extractor.strides if one >= 16 and math.ceil(sizes.image_size / one) ** 2 <= _MOST_PLACES
        ]
        self.stride = min(fine, default=max(extractor.strides))
        maps = zip(extractor.out_names, extractor.channels, extractor.strides, strict=True)
        used = [found for found in maps if 2 * found[2] >= self.stride]
        self._used = [name for name, _, _ in used]
        width = sizes.width
        self.project = MapProjection([count for _, count, _ in used], [own for *_, own in used], self.stride, width)
        self.text = text or WordEncoder(num_words, sizes)
        self.kinds = nn.Parameter(0.02 * torch.randn(2, width))  # of tokens: places and words
        self.fusion = blocks(sizes, sizes.fusion_layers)
        self.norm = nn.LayerNorm(width)
        self.score = nn.Linear(width, 1)
        hidden, last = nn.Linear(width, width), nn.Linear(width, 4)
        self.box = nn.Sequential(hidden, nn.GELU(), last)
        nn.init.constant_(last.bias[2:], -1.5)  # boxes begin at a fifth of the canvas

    def forward(self, images: Tensor, masks: Tensor, image_of: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and boxes of P phrases at each of N places, row by row.

        Images ``[I, 3, S, S]`` are normalised, masks bool ``[I, S, S]`` are True where there is padding, ``image_of``
        int64 ``[P]`` is the place of each phrase's image, words are int64 ``[P, T]``.

        Returns:
            Logits ``[P, N]``, -inf where there is padding, and corners ``[P, N, 4]`` in fractions of the canvas.
        """
        return self.answer(self.maps_of(images, masks), masks, image_of, words)

    def maps_of(self, images: Tensor, masks: Tensor) -> list[Tensor]:
        """The backbone's maps ``[I, C_i, h_i, w_i]`` that the grid is made of; arguments as those of ``forward``."""
        found = self.backbone.forward_with_mask(images, masks)
        return [found[name][0] for name in self._used]

    def answer(self, maps: Sequence[Tensor], masks: Tensor, image_of: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """What ``forward`` returns, from the backbone's maps."""
        side = math.ceil(masks.shape[-1] / self.stride)
        features = self.project(maps, side)  # [I, width, side, side]
        padding = functional.interpolate(masks[:, None].float(), size=(side, side))[:, 0].bool()
        # A turned image may be narrower than a place, and lie between two: then no place is padding.
        padding &= ~padding.all(dim=(1, 2), keepdim=True)
        places = (features + sine_positions(padding, features.shape[1])).flatten(2).transpose(1, 2)  # [I, N, width]
        no_place = padding.flatten(1)[image_of]  # [P, N]

        text, no_word = self.text(words)  # [P, T, width], [P, T]
        tokens = torch.cat([places[image_of] + self.kinds[0], text + self.kinds[1]], dim=1)
        is_padding = torch.cat([no_place, no_word], dim=1)
        for layer in self.fusion:
            tokens = layer(tokens, is_padding)
        fused = self.norm(tokens[:, : side * side])

        scores = self.score(fused)[..., 0].float().masked_fill(no_place, -torch.inf)
        offsets = self.box(fused).float()  # [P, N, 4]: of the centre in places, and the logits of width and height
        centres = place_centres(side, offsets.device) + offsets[..., :2] / side
        boxes = torch.cat([centres, offsets[..., 2:].sigmoid()], dim=-1)
        return scores, box_convert(boxes, "cxcywh", "xyxy").clamp(0, 1)


def best_boxes(scores: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """The probability ``[P]`` of the best place of each phrase, and its corners ``[P, 4]``."""
    probabilities, places = scores.softmax(-1).max(-1)
    if not probabilities.isfinite().all():
        raise UserError("the model's scores are no numbers: its weights are broken; use another checkpoint")
    return probabilities, boxes[torch.arange(len(boxes), device=boxes.device), places]


def place_centres(side: int, device: torch.device) -> Tensor:
    """Centres ``[N, 2]`` (x, y) of the places, row by row, in fractions of the canvas."""
    steps = (torch.arange(side, device=device) + 0.5) / side
    return torch.stack([steps.repeat(side), steps.repeat_interleave(side)], dim=-1)


def sine_positions(padding: Tensor, width: int) -> Tensor:
    """Sine position embeddings ``[I, width, h, w]`` over the part without padding (Carion et al., 2020)."""
    valid = (~padding).float()
    rows, columns = valid.cumsum(1), valid.cumsum(2)
    rows = 2 * math.pi * (rows - 0.5) / rows.amax(1, keepdim=True).clamp(min=1)
    columns = 2 * math.pi * (columns - 0.5) / columns.amax(2, keepdim=True).clamp(min=1)
    count = width // 4
    periods = 100 ** (torch.arange(count, device=padding.device) / count)
    angles = [positions[:, None] / periods[:, None, None] for positions in (rows, columns)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)


def target_places(boxes: Tensor, num_places: int, is_padding: Tensor) -> Tensor:
    """Weights ``[P, N]`` of the places, which sum to 1: a Gaussian around each box's centre (Zhou et al., 2019).

    ``boxes`` are corners ``[P, 4]`` in fractions of the canvas, ``is_padding`` is bool ``[P, N]``.
    """
    side = round(num_places**0.5)
    centres = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2  # [P, 1, 2]
    spread = _WIDTH * (boxes[:, None, 2:] - boxes[:, None, :2]) + 0.25 / side
    distance = ((place_centres(side, boxes.device) - centres) / spread).square().sum(-1)
    weights: Tensor = (-distance / 2).masked_fill(is_padding, -torch.inf).softmax(-1)
    return weights


def grounding_loss(scores: Tensor, found: Tensor, boxes: Tensor) -> Tensor:
    """Loss ``[P]`` of each phrase: cross-entropy of the places, L1 and generalised IoU (Rezatofighi et al., 2019).

    Logits ``scores [P, N]`` and corners ``found [P, N, 4]`` are the network's, ``boxes [P, 4]`` the true corners.
    """
    weights = target_places(boxes, scores.shape[1], scores.isneginf())
    places = -(weights * scores.log_softmax(-1).nan_to_num(neginf=0.0)).sum(-1)
    targets = boxes[:, None].expand_as(found)
    l1 = functional.l1_loss(found, targets, reduction="none").mean(-1)
    giou: Tensor = generalized_box_iou_loss(found, targets)
    loss: Tensor = places + (weights * (_L1 * l1 + _GIOU * giou)).sum(-1)
    return loss
