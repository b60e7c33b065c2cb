"""DETR, Deformable-DETR and TransVG: masked images in, masked maps or tokens out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torchvision import models

from sat_vg.backbone_finetuning.models.adapters.adapter import Adapter
from sat_vg.backbone_finetuning.models.feature_extractor import FeatureExtractor
from sat_vg.backbone_finetuning.models.feature_pyramid import Extractor
from sat_vg.backbone_finetuning.models.networks.families.timm_cutting import TRUNK
from sat_vg.backbone_finetuning.models.networks.table import BACKBONES, TIMM_PREFIX
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.tensor_files import save_tensors

DETR_PREFIX = "backbone.0.body."  # of the names in DETR's checkpoints


class MaskedImages(Protocol):
    """Images of several sizes padded into one batch; DETR's ``NestedTensor`` is one.

    Attributes:
        tensors: ``[B, C, H, W]``.
        mask: ``[B, H, W]`` bool or integers, True (non-zero) = padding; None: no padding.
    """

    tensors: Tensor
    mask: Tensor | None

    def __init__(self, tensors: Tensor, mask: Tensor | None) -> None: ...


Samples = TypeVar("Samples", bound=MaskedImages)


def invert_mask(mask: Tensor) -> Tensor:
    """Turn a mask of valid pixels (bool or numbers, of any shape) into a bool one of padding, or the other way round.

    Hugging Face's ``pixel_mask`` has 1 = valid; the extractor, DETR and TransVG have True = padding. For Hugging
    Face, cast the result to ``torch.long``.
    """
    return mask == 0


def _require_masked(samples: object) -> None:
    if not (hasattr(samples, "tensors") and hasattr(samples, "mask")):
        raise ConfigError(
            f"samples of type {type(samples).__name__}: give an object with .tensors [B, C, H, W] and .mask "
            "[B, H, W] (True = padding, or None), such as DETR's NestedTensor; a plain tensor is for the extractor"
        )


class DetrBackbone(nn.Module):
    """The first half of DETR's ``Joiner``: masked images → masked maps.

    Args:
        extractor: lies under ``body``, as in DETR, so the state dict has DETR's keys.
        num_channels: ``last`` or ``list``, see ``as_detr``.
    """

    def __init__(self, extractor: Extractor, num_channels: Literal["last", "list"] = "last") -> None:
        super().__init__()
        self.body = extractor
        self.channels = list(extractor.channels)
        self.num_channels = list(self.channels) if num_channels == "list" else extractor.num_channels
        self.strides = list(extractor.strides)

    def forward(self, samples: Samples) -> dict[str, Samples]:
        """Maps under ``"0"``, ``"1"``, … in order of depth, each of the class of ``samples``, with a bool mask."""
        _require_masked(samples)
        maps = self.body.forward_with_mask(samples.tensors, samples.mask)
        return {str(index): type(samples)(features, mask) for index, (features, mask) in enumerate(maps.values())}


class _PositionEmbedding(nn.Module):
    """Makes a module of a plain function from masked maps to position encodings."""

    def __init__(self, function: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, samples: Any) -> Tensor:
        return self.function(samples)


class DetrJoiner(nn.Sequential):
    """Backbone and position embedding as DETR takes them (Carion et al., 2020): made by ``as_detr``."""

    def __init__(self, backbone: DetrBackbone, position_embedding: nn.Module) -> None:
        super().__init__(backbone, position_embedding)
        self.num_channels, self.channels, self.strides = backbone.num_channels, backbone.channels, backbone.strides

    def forward(self, samples: Samples) -> tuple[list[Samples], list[Tensor]]:
        """Masked images → masked maps in order of depth, and the position encoding of each in the map's dtype."""
        maps: list[Samples] = list(self[0](samples).values())
        return maps, [self[1](level).to(level.tensors.dtype) for level in maps]


def as_detr(
    extractor: Extractor,
    position_embedding: Callable[[Any], Tensor],
    num_channels: Literal["last", "list"] = "last",
) -> DetrJoiner:
    """The extractor as DETR's ``Joiner``: ``joiner[0]`` is the backbone, ``joiner[1]`` the position embedding.

    ``joiner(samples)`` takes an object with ``.tensors [B, 3, H, W]`` and ``.mask [B, H, W]`` (bool or integers,
    True = padding, or None) and gives ``(maps, position encodings)``: the maps are of the class of ``samples``, built
    as ``type(samples)(map, mask)``. DETR uses the last one, Deformable-DETR all of them.

    Args:
        extractor: its maps are the levels.
        position_embedding: module or function from such an object to ``[B, D, h, w]``.
        num_channels: what the attribute of this name holds: ``last``, the channels of the last map, for DETR;
            ``list``, those of all maps, for Deformable-DETR and DINO.

    Raises:
        ConfigError: ``num_channels`` is neither, or nothing can be called for positions.
    """
    if num_channels not in ("last", "list"):
        raise ConfigError(
            f"num_channels = {num_channels!r}: must be 'last' (DETR) or 'list' (Deformable-DETR, DINO); how many "
            "there are is measured"
        )
    if not callable(position_embedding):
        raise ConfigError(
            f"position_embedding is of type {type(position_embedding).__name__}: give a module or a function from "
            "masked maps to [B, D, h, w], such as DETR's build_position_encoding(args)"
        )
    if not isinstance(position_embedding, nn.Module):
        position_embedding = _PositionEmbedding(position_embedding)
    return DetrJoiner(DetrBackbone(extractor, num_channels), position_embedding)


class TransvgBackbone(Adapter):
    """The extractor as TransVG's visual branch (Deng et al., 2021): masked images → the last map as tokens.

    TransVG's images have 640 pixels and its models 400 visual tokens: that is a last map of stride 32.
    """

    def forward(self, samples: MaskedImages) -> tuple[Tensor, Tensor]:
        """Masked images → ``(mask [B, h * w] bool, True = padding; tokens [h * w, B, num_channels])``."""
        _require_masked(samples)
        return self.extractor.forward_tokens(samples.tensors, samples.mask)


as_transvg = TransvgBackbone


def torchvision_name(backbone: str) -> str:
    """``timm:resnet50.a1_in1k`` → ``resnet50``: some of timm's have the layers of torchvision's of that name."""
    return backbone.removeprefix(TIMM_PREFIX).partition(".")[0]


def is_torchvisions_resnet(backbone: str, state: Mapping[str, Tensor]) -> bool:
    """Whether torchvision has a ResNet, ResNeXt or wide ResNet of this name with these tensors, the head aside."""
    known = BACKBONES.get(torchvision_name(backbone))
    if known is None or known.family.name != "ResNet" or known.name not in models.list_models(module=models):
        return False
    with torch.device("meta"):
        theirs = models.get_model(known.name, weights=None).state_dict()
    own = {name.removeprefix(TRUNK): value.shape for name, value in state.items()}
    return {name: shape for name, shape in own.items() if not name.startswith(("fc.", "head."))} == {
        name: value.shape for name, value in theirs.items() if not name.startswith("fc.")
    }


def export_detr_state_dict(extractor: FeatureExtractor, path: str | Path) -> int:
    """Write the weights of a ResNet, ResNeXt or wide ResNet as a checkpoint of DETR, which TransVG reads too.

    The file holds ``{"model": {"backbone.0.body.conv1.weight": …}}`` and goes into either of them with
    ``model.load_state_dict(torch.load(path)["model"], strict=False)``. Their batch norm keeps no
    ``num_batches_tracked``, so it is left out. The file appears whole or not at all.

    Returns:
        The number of tensors written.

    Raises:
        ConfigError: the backbone has not the names that DETR's ResNet has, so nothing of it would be loaded.
        WriteError: the folder cannot be written to or the disk is full.
    """
    # A network of timm lies one level deeper; some of its ResNets have the very layers of torchvision's.
    state = {name.removeprefix(TRUNK): value for name, value in extractor.state_dict().items()}
    parts = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
    missing = [part for part in parts if not any(name.startswith(f"{part}.") for name in state)]
    is_other = extractor.backbone.startswith(TIMM_PREFIX) and not is_torchvisions_resnet(extractor.backbone, state)
    if missing or is_other:
        lacks = f"no {', '.join(missing)}" if missing else "other layers than torchvision's of that name"
        raise ConfigError(
            f"backbone = {extractor.backbone!r} has {lacks}: DETR's backbone is a ResNet, and would "
            "load none of these weights. Fine-tune a ResNet such as resnet50, or put this backbone in with as_detr"
        )
    tensors = {
        DETR_PREFIX + name: value.detach().cpu().contiguous()
        for name, value in state.items()
        if not name.endswith("num_batches_tracked")
    }
    save_tensors(Path(path), {"model": tensors})
    return len(tensors)
