"""Maps in an output object, as the backbones of Hugging Face give them."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, cast

from torch import Tensor, nn

from sat_vg.backbone_finetuning.models.feature_extractor import FeatureExtractor
from sat_vg.backbone_finetuning.models.feature_pyramid import Extractor
from sat_vg.backbone_finetuning.utils.errors import ConfigError


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
        stage_names: all stages.
        out_features: the stages whose maps are given.
        out_indices: their positions in ``stage_names``.
        channels: of each map.
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
            output_hidden_states: not to be had.
            output_attentions: not to be had.
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
