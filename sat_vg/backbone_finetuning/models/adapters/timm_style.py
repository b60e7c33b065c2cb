"""A list of maps with ``feature_info``, as timm gives them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from sat_vg.backbone_finetuning.models.feature_pyramid import Extractor


class FeatureInfo:
    """What timm tells about its feature maps.

    Args:
        extractor: whose maps they are.

    Attributes:
        out_indices: positions of the maps.
    """

    def __init__(self, extractor: Extractor) -> None:
        self.out_indices = tuple(range(len(extractor.out_names)))
        self._rows: list[dict[str, Any]] = [
            {"num_chs": channels, "reduction": stride, "module": name, "index": index}
            for index, (channels, stride, name) in enumerate(
                zip(extractor.channels, extractor.strides, extractor.out_names, strict=True)
            )
        ]

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
