"""Feature maps as timm, detectron2 and Hugging Face give them, and the last map alone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from torch import Tensor, nn

from sat_vg.backbone_finetuning.models.feature_extractor import FeatureExtractor
from sat_vg.backbone_finetuning.models.feature_pyramid import Extractor
from sat_vg.backbone_finetuning.utils.errors import ConfigError


class TensorBackbone(nn.Module):
    """Images → the last map: made by ``as_tensor``.

    Attributes:
        num_channels: channels of the map.
        out_channels: the same, under torchvision's name.
        stride: input pixels per map pixel.
    """

    def __init__(self, extractor: Extractor) -> None:
        super().__init__()
        self.extractor = extractor
        self.num_channels = self.out_channels = extractor.num_channels
        self.stride = extractor.strides[-1]

    def forward(self, images: Tensor) -> Tensor:
        """``[B, C, H, W]``, normalised → ``[B, num_channels, h, w]``."""
        features: Tensor = self.extractor(images)[self.extractor.out_names[-1]]
        return features


def as_tensor(extractor: Extractor) -> TensorBackbone:
    """The extractor as a module that gives its last map as one tensor and no dictionary.

    So it stands where ``torch.nn.Sequential(*list(resnet.children())[:-2])`` did: of a ResNet-50
    ``[B, 2048, 7, 7]`` for images of 224 pixels.
    """
    return TensorBackbone(extractor)


class FeatureInfo:
    """The description of feature maps that timm's models have.

    Args:
        extractor: whose maps they are.

    Attributes:
        out_indices: positions of the maps.
    """

    def __init__(self, extractor: Extractor) -> None:
        rows = zip(extractor.channels, extractor.strides, extractor.out_names, strict=True)
        self._rows: list[dict[str, Any]] = [
            {"num_chs": channels, "reduction": stride, "module": name, "index": index}
            for index, (channels, stride, name) in enumerate(rows)
        ]
        self.out_indices = tuple(range(len(self._rows)))

    def channels(self, index: int | Sequence[int] | None = None) -> Any:
        """Channels of all maps, of those at the positions, or of the one at the position."""
        return self.get("num_chs", index)

    def reduction(self, index: int | Sequence[int] | None = None) -> Any:
        """Strides of all maps, of those at the positions, or of the one at the position."""
        return self.get("reduction", index)

    def module_name(self, index: int | Sequence[int] | None = None) -> Any:
        """Names of the stages of all maps, of those at the positions, or of the one at the position."""
        return self.get("module", index)

    def get(self, key: str, index: int | Sequence[int] | None = None) -> Any:
        """One entry of ``get_dicts`` for all maps, for those at the positions, or for the one at the position."""
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


class TimmBackbone(nn.Module):
    """A list of maps, like timm's ``create_model(…, features_only=True)``: made by ``as_timm``.

    Attributes:
        feature_info: channels, strides and names of the maps.
    """

    def __init__(self, extractor: Extractor) -> None:
        super().__init__()
        self.extractor = extractor
        self.feature_info = FeatureInfo(extractor)

    def forward(self, images: Tensor) -> list[Tensor]:
        """``[B, C, H, W]``, normalised → ``[B, channels, h, w]`` in order of depth."""
        return list(self.extractor(images).values())


def as_timm(extractor: Extractor) -> TimmBackbone:
    """The extractor as a model of timm with ``features_only=True``; ``module_name()`` gives the stages' names."""
    return TimmBackbone(extractor)


class ShapeSpec(NamedTuple):
    """A map's shape, with the names that detectron2 reads; height and width are unknown beforehand.

    Attributes:
        channels: channels of the map.
        height: None.
        width: None.
        stride: input pixels per map pixel.
    """

    channels: int
    height: int | None = None
    width: int | None = None
    stride: float | None = None


class Detectron2Backbone(nn.Module):
    """Maps by name, with the attributes of detectron2's ``Backbone``: made by ``as_detectron2``.

    Attributes:
        size_divisibility: what the sides of a batch must be multiples of.
        padding_constraints: the same as detectron2's ``ImageList`` takes it; images need not be square.
    """

    def __init__(self, extractor: Extractor) -> None:
        super().__init__()
        self.extractor = extractor
        self.size_divisibility = extractor.size_divisibility
        self.padding_constraints = {"size_divisibility": extractor.size_divisibility, "square_size": 0}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """``[B, C, H, W]``, normalised → ``[B, channels, h, w]`` by stage name."""
        return dict(self.extractor(images))

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each map."""
        rows = zip(self.extractor.out_names, self.extractor.channels, self.extractor.strides, strict=True)
        return {name: ShapeSpec(channels=channels, stride=stride) for name, channels, stride in rows}


def as_detectron2(extractor: Extractor) -> Detectron2Backbone:
    """The extractor as a backbone of detectron2, or as the ``bottom_up`` of its FPN.

    detectron2's own models normalise by ``pixel_mean`` and ``pixel_std`` on images in [0, 255]: give them
    ``[255 * m for m in extractor.mean]`` and ``[255 * s for s in extractor.std]``, and ``input_format="RGB"``.
    """
    return Detectron2Backbone(extractor)


class BackboneOutput(OrderedDict[str, Any]):
    """Maps under the names of Hugging Face's ``BackboneOutput``; entries that are None do not count.

    A dict, as there: Hugging Face's DETR tells an output from a list of maps by that. ``output[0]`` is the first
    entry.

    Attributes:
        hidden_states: always None.
        attentions: always None.
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


class HfBackbone(nn.Module):
    """Maps in an output object, with the attributes of Hugging Face's ``AutoBackbone``: made by ``as_hf``.

    Attributes:
        stage_names: names of all stages.
        out_features: names of the stages whose maps are given.
        out_indices: their positions in ``stage_names``.
        channels: channels of each map.
    """

    def __init__(self, extractor: Extractor) -> None:
        super().__init__()
        self.extractor = extractor
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
        """Feature maps of normalised images.

        Args:
            pixel_values: ``[B, C, H, W]``, normalised.
            output_hidden_states: not available.
            output_attentions: not available.
            return_dict: False: a plain tuple ``(feature_maps,)``.

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


def as_hf(extractor: Extractor) -> HfBackbone:
    """The extractor as a backbone of Hugging Face's models; for their masks see ``invert_mask``."""
    return HfBackbone(extractor)
