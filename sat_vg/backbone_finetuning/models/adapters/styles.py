"""The last map alone, and maps as torchvision, timm, detectron2, Hugging Face and segmentation_models have them."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from sat_vg.backbone_finetuning.models.adapters.adapter import Adapter
from sat_vg.backbone_finetuning.models.feature_extractor import FeatureExtractor
from sat_vg.backbone_finetuning.models.feature_pyramid import Extractor, SimpleFeaturePyramid
from sat_vg.backbone_finetuning.models.freezing import in_eval_mode
from sat_vg.backbone_finetuning.models.stages import find_member
from sat_vg.backbone_finetuning.utils.errors import ConfigError

_SMP_STRIDES = (2, 4, 8, 16, 32)


class TensorBackbone(Adapter):
    """The extractor as a module that gives its last map as one tensor and no dictionary.

    So it stands where ``torch.nn.Sequential(*list(resnet.children())[:-2])`` did: of a ResNet-50
    ``[B, 2048, 7, 7]`` for images of 224 pixels. ``num_channels``, under torchvision's name ``out_channels``, and
    ``stride`` are those of the map.
    """

    def __init__(self, extractor: Extractor) -> None:
        super().__init__(extractor)
        self.out_channels = extractor.num_channels
        self.stride = extractor.strides[-1]

    def forward(self, images: Tensor) -> Tensor:
        """``[B, C, H, W]``, normalised → ``[B, num_channels, h, w]``."""
        features: Tensor = self.extractor(images)[self.extractor.out_names[-1]]
        return features


as_tensor = TensorBackbone


def _crop_padding(features: Tensor, images: Tensor, stride: float) -> Tensor:
    """``features [B, C, h, w]`` without the rows and columns that lie in what the extractor padded."""
    height, width = (math.ceil(side / stride) for side in images.shape[-2:])
    return features[:, :, :height, :width]


class TorchvisionBackbone(nn.Module):
    """Levels of one width, ``out_channels``, for ``torchvision.models.detection``: made by ``as_torchvision``."""

    def __init__(self, body: Extractor, fpn: nn.Module | None, out_channels: int) -> None:
        super().__init__()
        self.body = body
        self.fpn = fpn
        self.out_channels = out_channels
        self.last_level = LastLevelMaxPool()

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """``[B, C, H, W]``, normalised → ``[B, out_channels, h, w]`` under ``"0"``, ``"1"``, … and ``"pool"``."""
        levels = OrderedDict((str(index), level) for index, level in enumerate(self.body(images).values()))
        if self.fpn is not None:
            levels = self.fpn(levels)
        # The detector infers a level's scale from its size and that of the images.
        pairs = zip(levels.values(), self.body.strides, strict=True)
        inside = [_crop_padding(level, images, stride) for level, stride in pairs]
        values, names = self.last_level(inside, inside, list(levels))
        return OrderedDict(zip(names, values, strict=True))


def as_torchvision(extractor: FeatureExtractor, fpn_channels: int = 256) -> TorchvisionBackbone:
    """The extractor as the backbone of ``FasterRCNN``, ``MaskRCNN``, ``KeypointRCNN`` and ``FCOS``.

    Over maps of several strides lies torchvision's ``FeaturePyramidNetwork``, over those of a single stride (ViT) a
    ``SimpleFeaturePyramid``; either starts untrained and has levels of ``fpn_channels``. The levels are called
    ``"0"``, ``"1"``, … and ``"pool"``, as torchvision's defaults expect them; those are for four maps and the pool.

    The detector normalises by itself: give it images in [0, 1], and
    ``FasterRCNN(backbone, num_classes, image_mean=extractor.mean, image_std=extractor.std)``.

    Raises:
        ConfigError: ``fpn_channels`` is below 1, or a stride is no power of two (a ViT with patches of 14 pixels).
    """
    if fpn_channels < 1:
        raise ConfigError(f"fpn_channels = {fpn_channels}: a level needs at least 1; the usual value is 256")
    body: Extractor = extractor
    fpn = None
    if len(set(extractor.strides)) == 1:
        body = SimpleFeaturePyramid(extractor, fpn_channels)
    else:
        reference = next(extractor.parameters())
        fpn = FeaturePyramidNetwork(list(extractor.channels), fpn_channels).to(reference.device, reference.dtype)
    if not all(math.log2(stride).is_integer() for stride in body.strides):
        raise ConfigError(
            f"backbone = {extractor.backbone!r} gives strides {body.strides}: torchvision's RoI pooling rounds "
            "them to powers of two and would cut boxes at wrong places. Use a backbone with patches of 16 or 32 "
            "pixels, or SimpleFeaturePyramid with a RoI pooling of your own"
        )
    return TorchvisionBackbone(body, fpn, fpn_channels)


class FeatureInfo:
    """The description of feature maps that timm's models have; ``out_indices`` are the positions of the maps.

    Its methods give a value of all maps, of those at the positions in ``index``, or of the one at that position.
    """

    def __init__(self, extractor: Extractor) -> None:
        rows = zip(extractor.channels, extractor.strides, extractor.out_names, strict=True)
        self._rows: list[dict[str, Any]] = [
            {"num_chs": channels, "reduction": stride, "module": name, "index": index}
            for index, (channels, stride, name) in enumerate(rows)
        ]
        self.out_indices = tuple(range(len(self._rows)))

    def channels(self, index: int | Sequence[int] | None = None) -> Any:
        """Channels."""
        return self.get("num_chs", index)

    def reduction(self, index: int | Sequence[int] | None = None) -> Any:
        """Strides."""
        return self.get("reduction", index)

    def module_name(self, index: int | Sequence[int] | None = None) -> Any:
        """Names of the stages."""
        return self.get("module", index)

    def get(self, key: str, index: int | Sequence[int] | None = None) -> Any:
        """One entry of ``get_dicts``."""
        if isinstance(index, int):
            return self._rows[index][key]
        return [self._rows[position][key] for position in (self.out_indices if index is None else index)]

    def get_dicts(self, keys: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """A dict for each map with ``num_chs``, ``reduction``, ``module`` and ``index``, or some of them."""
        return [{key: row[key] for key in (row if keys is None else keys)} for row in self._rows]

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)


class TimmBackbone(Adapter):
    """The extractor as a model of timm's with ``features_only=True``: ``feature_info`` describes the maps."""

    def __init__(self, extractor: Extractor) -> None:
        super().__init__(extractor)
        self.feature_info = FeatureInfo(extractor)

    def forward(self, images: Tensor) -> list[Tensor]:
        """``[B, C, H, W]``, normalised → ``[B, channels, h, w]`` in order of depth."""
        return list(self.extractor(images).values())


as_timm = TimmBackbone


class ShapeSpec(NamedTuple):
    """A map's shape, with the names that detectron2 reads; height and width are unknown beforehand."""

    channels: int
    height: int | None = None
    width: int | None = None
    stride: float | None = None


class Detectron2Backbone(Adapter):
    """The extractor as a backbone of detectron2, or as the ``bottom_up`` of its FPN, with its attributes.

    detectron2's own models normalise by ``pixel_mean`` and ``pixel_std`` on images in [0, 255]: give them
    ``[255 * m for m in extractor.mean]`` and ``[255 * s for s in extractor.std]``, and ``input_format="RGB"``.
    """

    def __init__(self, extractor: Extractor) -> None:
        super().__init__(extractor)
        self.size_divisibility = extractor.size_divisibility
        # The same as detectron2's ImageList takes it; images need not be square.
        self.padding_constraints = {"size_divisibility": extractor.size_divisibility, "square_size": 0}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """``[B, C, H, W]``, normalised → ``[B, channels, h, w]`` by stage name."""
        return dict(self.extractor(images))

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each map."""
        rows = zip(self.extractor.out_names, self.extractor.channels, self.extractor.strides, strict=True)
        return {name: ShapeSpec(channels=channels, stride=stride) for name, channels, stride in rows}


as_detectron2 = Detectron2Backbone


class BackboneOutput(OrderedDict[str, Any]):
    """Maps under the names of Hugging Face's ``BackboneOutput``; entries that are None do not count.

    A dict, as there: Hugging Face's DETR tells an output from a list of maps by that. ``output[0]`` is the first
    entry.
    """

    hidden_states: None = None
    attentions: None = None

    def __init__(self, feature_maps: tuple[Tensor, ...] = ()) -> None:
        super().__init__(feature_maps=feature_maps)

    @property
    def feature_maps(self) -> tuple[Tensor, ...]:
        """``[B, channels, h, w]`` each, in order of depth."""
        return cast("tuple[Tensor, ...]", self["feature_maps"])

    def to_tuple(self) -> tuple[Any, ...]:
        """What there is, without the names."""
        return tuple(self.values())

    def __getitem__(self, key: str | int | slice) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]


class HfBackbone(Adapter):
    """The extractor as a backbone of Hugging Face's models; for their masks see ``invert_mask``.

    ``stage_names`` are all stages, ``out_features`` those whose maps are given, ``out_indices`` their positions.
    """

    def __init__(self, extractor: Extractor) -> None:
        super().__init__(extractor)
        names = extractor.stage_names if isinstance(extractor, FeatureExtractor) else extractor.out_names
        self.stage_names = list(names)
        self.out_features = list(extractor.out_names)
        self.out_indices = [self.stage_names.index(name) for name in self.out_features]
        self.channels = list(extractor.channels)

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> BackboneOutput | tuple[Any, ...]:
        """Feature maps of normalised ``pixel_values [B, C, H, W]``; a tuple of them if ``return_dict`` is False.

        Raises:
            ConfigError: hidden states or attentions are asked for.
        """
        if output_hidden_states or output_attentions:
            raise ConfigError(
                f"output_hidden_states = {output_hidden_states}, output_attentions = {output_attentions}: this "
                "backbone gives feature maps only. Ask for more stages with get_feature_extractor(out_names=[…]); "
                "attention of a ViT comes from FineTuneModel.get_attention_maps"
            )
        output = BackboneOutput(tuple(self.extractor(pixel_values).values()))
        return output.to_tuple() if return_dict is False else output

    def forward_with_filtered_kwargs(self, pixel_values: Tensor, **options: Any) -> BackboneOutput | tuple[Any, ...]:
        """``forward``, leaving out options that it does not know; Hugging Face's models call a backbone so."""
        known = ("output_hidden_states", "output_attentions", "return_dict")
        return self.forward(pixel_values, **{key: value for key, value in options.items() if key in known})


as_hf = HfBackbone


class SmpEncoder(Adapter):
    """The extractor as an encoder of segmentation_models_pytorch, with five maps below the input.

    The last map of each stride is taken. Some stems go to stride 4 in one stage: a ResNet's, DenseNet's or
    ShuffleNet's map at stride 2 is taken inside the stem, before its pooling; ConvNeXt, Swin and a
    ``SimpleFeaturePyramid`` have none and get one without channels, as segmentation_models_pytorch itself does it for
    such encoders. ``out_channels`` begins with the input's.

    Raises:
        ConfigError: a stride is missing; names the ``out_names`` to ask for, found by a dry run.
    """

    def __init__(self, extractor: Extractor) -> None:
        super().__init__(extractor)
        _require_smp_strides(extractor)
        self.output_stride = _SMP_STRIDES[-1]
        rows = zip(extractor.strides, extractor.out_names, extractor.channels, strict=True)
        by_stride = {stride: (name, channels) for stride, name, channels in rows}  # the last one of a stride
        self._names = {stride: by_stride[stride][0] for stride in _SMP_STRIDES if stride in by_stride}
        self.out_channels = [extractor.in_channels, *(by_stride[stride][1] for stride in self._names)]
        # Where no stage gives stride 2: the module inside the stem that does, or None.
        self._half: str | None = None
        if 2 not in by_stride:
            self._half, channels = _half_inside_the_stem(extractor)
            self.out_channels.insert(1, channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        """``[B, C, H, W]``, normalised, sides multiples of 32 → the images and five maps."""
        halves: list[Tensor] = []
        if self._half is not None:
            stem = find_member(self.extractor, self._half)
            hook = stem.register_forward_hook(lambda module, inputs, output: halves.append(output))
            try:
                maps = self.extractor(images)
            finally:
                hook.remove()
        else:
            maps = self.extractor(images)
            if 2 not in self._names:
                batch, _, height, width = images.shape
                halves.append(images.new_zeros(batch, 0, math.ceil(height / 2), math.ceil(width / 2)))
        chosen = [(2, half) for half in halves] + [(stride, maps[name]) for stride, name in self._names.items()]
        return [images, *(_crop_padding(features, images, stride) for stride, features in chosen)]


as_smp = SmpEncoder


def _require_smp_strides(extractor: Extractor) -> None:
    missing = [stride for stride in _SMP_STRIDES if stride not in extractor.strides]
    strides = extractor.stage_strides if isinstance(extractor, FeatureExtractor) else {}
    stages = {stride: name for name, stride in strides.items()}  # the last one of each stride
    name = extractor.backbone if isinstance(extractor, FeatureExtractor) else extractor.extractor.backbone
    has = f"extractor of {name} has strides {tuple(extractor.strides)}"
    absent = [stride for stride in missing if stride != 2 and stride not in stages]
    if absent:
        raise ConfigError(
            f"{has}, and no stage at {absent}: as_smp needs 4, 8, 16 and 32. Use another backbone; put a ViT with "
            "patches of 16 pixels into SimpleFeaturePyramid"
        )
    if any(stride in stages for stride in missing):
        wanted = [stages[stride] for stride in _SMP_STRIDES if stride in stages]
        raise ConfigError(
            f"{has}: as_smp needs {_SMP_STRIDES}. Make it with get_feature_extractor(out_names={wanted})"
        )


@torch.no_grad()
def _half_inside_the_stem(extractor: Extractor) -> tuple[str | None, int]:
    """The last module of the first stage that still gives stride 2, and its channels; None and 0: there is none."""
    found: tuple[str | None, int] = (None, 0)
    if not isinstance(extractor, FeatureExtractor) or extractor._stages[0].forward is not None:
        return found
    reference = next(extractor.parameters())
    value = torch.zeros(1, extractor.in_channels, 64, 64, dtype=reference.dtype, device=reference.device)
    with in_eval_mode(extractor):  # the blank image must not get into the statistics
        for member in extractor._stages[0].members:
            value = find_member(extractor, member)(value)
            if value.shape[2:] == (32, 32):
                found = (member, value.shape[1])
    return found
