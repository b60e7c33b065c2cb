"""FeatureExtractor: the backbone as a grounding or detection model takes it."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sat_vg.backbone_finetuning.models.dilation import dilate, undilatable
from sat_vg.backbone_finetuning.models.freezing import apply_trainable, check_stage_names, in_eval_mode, keep_in_eval
from sat_vg.backbone_finetuning.models.frozen_norm import freeze_batch_norm
from sat_vg.backbone_finetuning.models.image_batches import normalise_and_fill, require_batch, require_normalised
from sat_vg.backbone_finetuning.models.networks.table import BackboneRow
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.preprocessing import Preprocessing


class FeatureExtractor(nn.Module):
    """Multi-scale feature maps of a fine-tuned backbone, for images of any size.

    It holds torchvision's modules under torchvision's names, so ``state_dict()`` fits ``torchvision.models`` but
    for the classifier.

    Attributes:
        out_names: names of the stages whose maps are given, in order of depth.
        channels, strides: of each map, measured; strides in input pixels per map pixel.
        stage_strides: strides of all stages that give a map, wanted or not, by name.
        num_channels: channels of the last map.
        embed_dim: length of the pooled vector.
        size_divisibility, smallest_image: what images are padded to: multiples, and pixels a side at least.
        mean, std: normalisation, for images scaled to [0, 1].
        in_channels, bands: number and names of the input's channels, in order.
        image_size, interpolation: of the training images.
        class_names: classes it was fine-tuned on.
        backbone, provenance: name of the backbone, torchvision's; origin of the weights, plain data.
        trainable_stages: names of the stages with gradients.
    """

    def __init__(  # noqa: PLR0913 - built by FineTuneModel.get_feature_extractor alone
        self,
        network: nn.Module,
        row: BackboneRow,
        *,
        preprocessing: Preprocessing,
        class_names: Sequence[str] = (),
        out_names: Sequence[str | int] | None = None,
        trainable_stages: Sequence[str] | None = None,
        freeze_norm: bool = True,
        dilation: bool = False,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        for head in row.family.auxiliary_heads:
            setattr(network, head.module, None)
        parent, _, leaf = row.family.classifier.rpartition(".")
        setattr(network.get_submodule(parent), leaf, nn.Identity())
        self._graft(network)
        self._frozen_modules: list[nn.Module] = []
        self._family = row.family
        self._stages = row.family.stages(self)
        self.backbone = row.name
        self.preprocessing = preprocessing
        self.mean, self.std = preprocessing.mean, preprocessing.std
        self.image_size, self.interpolation = preprocessing.image_size, preprocessing.interpolation
        self.class_names = tuple(class_names)
        self.provenance = dict(provenance or {})
        self.bands, self.in_channels = preprocessing.bands, len(preprocessing.bands)
        self.size_divisibility = row.family.size_divisibility(self)
        self.smallest_image = max(row.family.smallest_image, row.family.smallest_measured(self))
        self._measure(out_names)
        if dilation:
            self._dilate()
        names = self.stage_names
        if trainable_stages is None:
            # What lies behind the last map is not run, and a parameter that waits for a gradient in vain would stop
            # a consumer that trains on several devices.
            trainable_stages = names[: names.index(self.out_names[-1]) + 1]
        self.trainable_stages = tuple(trainable_stages)
        check_stage_names(self.trainable_stages, names, "trainable_stages")
        # Those of frozen stages in any case: a consumer that converts or resets batch norms must not move them.
        norms_to_freeze = [s for s in self._stages if freeze_norm or s.name not in self.trainable_stages]
        freeze_batch_norm(self, {module for stage in norms_to_freeze for module in stage.modules(self)})
        self._frozen_modules = apply_trainable(self, self._stages, self.trainable_stages)
        self.eval()

    def _graft(self, network: nn.Module) -> None:
        """Take over the network's children and own parameters under their names."""
        for name, child in network.named_children():
            self.add_module(name, child)
        for name, parameter in network.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in network.named_buffers(recurse=False):
            self.register_buffer(name, buffer)

    def _dilate(self) -> None:
        """Take away the last halving of the resolution; the maps that are given stay the same ones."""
        strides = self.stage_strides
        largest = max(strides.values())
        first = next(place for place, stage in enumerate(self._stages) if strides.get(stage.name) == largest)
        affected = [stage for stage in self._stages[first:] if stage.gives_map]
        dilate(self.backbone, (module for stage in affected for module in stage.modules(self)))
        self._measure(self.out_names)
        expected = {name: stride if stride < largest else stride // 2 for name, stride in strides.items()}
        if self.stage_strides != expected:
            raise undilatable(self.backbone, f"its strides would be {tuple(self.stage_strides.values())}")

    def _measure(self, out_names: Sequence[str | int] | None) -> None:
        """Read channels, strides and the pooled vector's length off blank images of two sizes."""
        # A multiple of every stride, so that the difference of two sizes tells the strides exactly, whatever border
        # convolutions without padding lose.
        unit = self.size_divisibility if 32 % self.size_divisibility else 32
        fixed = self._family.fixed_image_size(self)
        side = fixed or math.ceil(max(64, self.smallest_image) / unit) * unit
        small, self.embed_dim = self._shapes(side)
        if fixed:
            self.stage_strides = {name: round(side / height) for name, (_, height) in small.items()}
        else:
            large, _ = self._shapes(2 * side)
            self.stage_strides = {name: round(side / (large[name][1] - small[name][1])) for name in small}
        if out_names is None:
            out_names = list({stride: name for name, stride in self.stage_strides.items() if stride >= 4}.values())
        wanted = _by_name(out_names, tuple(small))
        self.out_names = tuple(name for name in small if name in wanted)
        self.channels = tuple(small[name][0] for name in self.out_names)
        self.strides = tuple(self.stage_strides[name] for name in self.out_names)

    @torch.no_grad()
    def _shapes(self, side: int) -> tuple[dict[str, tuple[int, int]], int]:
        """Channels and height of every map for images of ``side`` pixels, and the pooled vector's length."""
        reference = next(self.parameters())
        value = torch.zeros(1, self.in_channels, side, side, dtype=reference.dtype, device=reference.device)
        shapes: dict[str, tuple[int, int]] = {}
        with in_eval_mode(self):
            for stage in self._stages:
                value = stage.run(self, value)
                if stage.gives_map:
                    _, channels, height, _ = self._family.to_map(self, value, (side, side)).shape
                    shapes[stage.name] = (channels, height)
            return shapes, self._family.pool(self, value).shape[1]

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of all stages, in order of depth."""
        return tuple(stage.name for stage in self._stages)

    @property
    def num_channels(self) -> int:
        """Channels of the last map."""
        return self.channels[-1]

    def train(self, mode: bool = True) -> FeatureExtractor:
        """Switch training mode; frozen stages and frozen batch norm stay as they are."""
        super().train(mode)
        keep_in_eval(self._frozen_modules)
        return self

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Feature maps of normalised images.

        Args:
            images: ``[B, C, H, W]``, any height and width; padded at the right and the bottom with zeros (the
                mean colour) where the backbone needs a multiple of ``size_divisibility``.

        Returns:
            ``[B, channels, h, w]`` by stage name, in order of depth.

        Raises:
            ConfigError: the images are no such batch, or not normalised (integers).
        """
        value = self._prepared(images)
        height, width = value.shape[-2:]
        maps: OrderedDict[str, Tensor] = OrderedDict()
        for stage in self._stages:
            value = stage.run(self, value)
            if stage.name in self.out_names:
                maps[stage.name] = self._family.to_map(self, value, (height, width))
            if len(maps) == len(self.out_names):
                break
        return maps

    def forward_with_mask(self, images: Tensor, mask: Tensor | None) -> OrderedDict[str, tuple[Tensor, Tensor]]:
        """Feature maps with the mask of padding at each map's size.

        Args:
            images: ``[B, C, H, W]``, normalised.
            mask: ``[B, H, W]``, True (or non-zero) where there is padding; None: no padding.

        Returns:
            ``([B, channels, h, w], [B, h, w] bool)`` by stage name; what was padded here is True too.

        Raises:
            ConfigError: the images are no batch, not normalised, or the mask does not fit them.
        """
        padded = self.padded_mask(images, mask)[:, None].float()
        return OrderedDict(
            (name, (features, functional.interpolate(padded, size=features.shape[-2:])[:, 0].bool()))
            for name, features in self.forward(images).items()
        )

    def padded_mask(self, images: Tensor, mask: Tensor | None) -> Tensor:
        """The mask ``[B, H', W']`` of the images as they are after padding; arguments as of ``forward_with_mask``."""
        require_batch(images, self.in_channels)
        batch, _, height, width = images.shape
        if mask is None:
            mask = torch.zeros(batch, height, width, dtype=torch.bool, device=images.device)
        if not isinstance(mask, Tensor) or mask.shape != (batch, height, width):
            given = f"has shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else f"is a {type(mask).__name__}"
            raise ConfigError(
                f"mask {given}; images of shape {list(images.shape)} need a tensor {(batch, height, width)}, True = "
                "padding, or None"
            )
        return self._pad((mask != 0).float()[:, None], value=1.0)[:, 0].bool()

    def forward_tokens(self, images: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The last map as a sequence, in the order that TransVG takes (Deng et al., 2021).

        Arguments as of ``forward_with_mask``.

        Returns:
            ``(mask [B, h * w] bool, features [h * w, B, channels])``.
        """
        features, small_mask = self.forward_with_mask(images, mask)[self.out_names[-1]]
        return small_mask.flatten(1), features.flatten(2).permute(2, 0, 1)

    def forward_pooled(self, images: Tensor) -> Tensor:
        """``images [B, C, H, W]``, normalised → ``[B, embed_dim]``: the vector that the classifier saw."""
        value = self._prepared(images)
        for stage in self._stages:
            value = stage.run(self, value)
        return self._family.pool(self, value)

    def _prepared(self, images: Tensor) -> Tensor:
        require_normalised(images, self.in_channels, self)
        keep_in_eval(self._frozen_modules)
        return self._pad(images, value=0.0)

    def _pad(self, images: Tensor, value: float) -> Tensor:
        """Pad ``[B, C, H, W]`` at the right and the bottom to multiples of ``size_divisibility``."""
        at_least = [max(side, self.smallest_image) for side in images.shape[-2:]]
        down, right = (
            least - side + -least % self.size_divisibility
            for side, least in zip(images.shape[-2:], at_least, strict=True)
        )
        return images if down == right == 0 else functional.pad(images, (0, right, 0, down), value=value)

    def transforms(self) -> nn.Module:
        """A PIL image or uint8 tensor ``[C, H, W]`` → ``[C, image_size, image_size]``, as in the validation.

        What it returns raises ``UserError`` for anything else, such as a path, an array or floats.
        """
        return self.preprocessing.transforms()

    def normalise(self, images: Tensor) -> Tensor:
        """Pixels ``[B, C, H, W]`` or ``[C, H, W]`` of any size → float32, normalised as in the training.

        Args:
            images: uint8; of a model for GeoTIFFs the values of the files, scale and offset applied, NaN where there
                is none.

        Raises:
            UserError: they are of another type, unit or number of channels.
        """
        return normalise_and_fill(self.preprocessing, images)

    def param_groups(self, lr: float, decay: float = 1.0) -> list[dict[str, Any]]:
        """Optimizer groups of the trainable stages, with a learning rate that falls towards the input.

        Args:
            lr: learning rate of the last stage.
            decay: factor from each stage to the one before it (Clark et al., 2020); 1: the same everywhere.

        Returns:
            One group a stage with ``params``, ``lr`` and ``name``, in order of depth.
        """
        groups = []
        for depth_from_end, stage in enumerate(reversed(self._stages)):
            parameters = [p for _, p in stage.named_parameters(self) if p.requires_grad]
            if parameters:
                groups.append({"params": parameters, "lr": lr * decay**depth_from_end, "name": stage.name})
        return groups[::-1]


def _by_name(wanted: Sequence[str | int], names: Sequence[str]) -> tuple[str, ...]:
    if isinstance(wanted, str) or not wanted:
        raise ConfigError(f"out_names = {wanted!r}: must be a list of stages that is not empty: {', '.join(names)}")
    for position in wanted:
        if isinstance(position, int) and not -len(names) <= position < len(names):
            raise ConfigError(
                f"out_names = {position}: there are {len(names)} stages that give maps, 0 to {len(names) - 1}: "
                f"{', '.join(names)}"
            )
    found = tuple(names[name] if isinstance(name, int) else name for name in wanted)
    check_stage_names(found, names, "out_names")
    return found
