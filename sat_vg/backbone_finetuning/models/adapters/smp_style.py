"""Maps from stride 1 on, as segmentation_models_pytorch takes them."""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn

from sat_vg.backbone_finetuning.models.adapters.torchvision_detection import crop_padding
from sat_vg.backbone_finetuning.models.feature_extractor import FeatureExtractor
from sat_vg.backbone_finetuning.models.feature_pyramid import Extractor
from sat_vg.backbone_finetuning.models.stages import find_member
from sat_vg.backbone_finetuning.utils.errors import ConfigError

_SMP_STRIDES = (2, 4, 8, 16, 32)


class SmpEncoder(nn.Module):
    """A list of maps at strides 1 (the input), 2, 4, 8, 16 and 32: made by ``as_smp``.

    Args:
        extractor: with a map at each of the strides 4 … 32.
        half: where no stage gives stride 2, the dotted name and the channels of the module inside the stem that does;
            an empty name and 0: there is none, and the map at stride 2 has no channels.

    Attributes:
        out_channels: of each map; the first are those of the input.
        output_stride: of the last map.
    """

    def __init__(self, extractor: Extractor, half: tuple[str, int] | None) -> None:
        super().__init__()
        self.extractor = extractor
        self.output_stride = _SMP_STRIDES[-1]
        rows = zip(extractor.strides, extractor.out_names, extractor.channels, strict=True)
        by_stride = {stride: (name, channels) for stride, name, channels in rows}  # the last one of a stride
        self._names = {stride: by_stride[stride][0] for stride in _SMP_STRIDES if stride in by_stride}
        self._half = half
        halves = [] if half is None else [half[1]]
        self.out_channels = [extractor.in_channels, *halves, *(by_stride[stride][1] for stride in self._names)]

    def forward(self, images: Tensor) -> list[Tensor]:
        """``[B, C, H, W]``, normalised, sides multiples of 32 → the images and five maps."""
        maps, halves = self._with_half(images)
        chosen = [crop_padding(maps[name], images, stride) for stride, name in self._names.items()]
        return [images, *(crop_padding(half, images, 2) for half in halves), *chosen]

    def _with_half(self, images: Tensor) -> tuple[OrderedDict[str, Tensor], list[Tensor]]:
        """The maps, and what stands for stride 2 where no stage gives it."""
        if self._half is None:
            return self.extractor(images), []
        member, _ = self._half
        if not member:
            batch, _, height, width = images.shape
            return self.extractor(images), [images.new_zeros(batch, 0, math.ceil(height / 2), math.ceil(width / 2))]
        outputs: list[Tensor] = []
        hook = find_member(self.extractor, member).register_forward_hook(
            lambda module, inputs, output: outputs.append(output)
        )
        try:
            return self.extractor(images), outputs
        finally:
            hook.remove()


def as_smp(extractor: Extractor) -> SmpEncoder:
    """The extractor as an encoder of segmentation_models_pytorch, with five maps below the input.

    The last map of each stride is taken. Some stems go to stride 4 in one stage: a ResNet's, DenseNet's or
    ShuffleNet's map at stride 2 is taken inside the stem, before its pooling; ConvNeXt, Swin and a
    ``SimpleFeaturePyramid`` have none and get one without channels, as segmentation_models_pytorch itself does it for
    such encoders.

    Raises:
        ConfigError: a stride is missing; names the ``out_names`` to ask for, found by a dry run.
    """
    missing = [stride for stride in _SMP_STRIDES if stride not in extractor.strides]
    if not missing:
        return SmpEncoder(extractor, None)
    strides = extractor.stage_strides if isinstance(extractor, FeatureExtractor) else {}
    stages = {stride: name for name, stride in strides.items()}  # the last one of each stride
    name = extractor.backbone if isinstance(extractor, FeatureExtractor) else extractor.extractor.backbone
    absent = [stride for stride in missing if stride != 2 and stride not in stages]
    if absent:
        raise ConfigError(
            f"extractor of {name} has strides {tuple(extractor.strides)}, and no stage at {absent}: as_smp needs "
            "4, 8, 16 and 32. Use another backbone; put a ViT with patches of 16 pixels into SimpleFeaturePyramid"
        )
    if any(stride in stages for stride in missing):
        wanted = [stages[stride] for stride in _SMP_STRIDES if stride in stages]
        raise ConfigError(
            f"extractor of {name} has strides {tuple(extractor.strides)}: as_smp needs {_SMP_STRIDES}. Make it with "
            f"get_feature_extractor(out_names={wanted})"
        )
    half = _half_inside_the_stem(extractor) if isinstance(extractor, FeatureExtractor) else None
    return SmpEncoder(extractor, half or ("", 0))


@torch.no_grad()
def _half_inside_the_stem(extractor: FeatureExtractor) -> tuple[str, int] | None:
    """The last module of the first stage that still gives stride 2, and its channels; None: there is none."""
    stem = extractor._stages[0]
    if stem.forward is not None:
        return None
    was_training = extractor.training
    extractor.eval()  # the blank image must not get into the statistics
    reference = next(extractor.parameters())
    value = torch.zeros(1, extractor.in_channels, 64, 64, dtype=reference.dtype, device=reference.device)
    found = None
    for member in stem.members:
        value = find_member(extractor, member)(value)
        if value.shape[2:] == (32, 32):
            found = (member, value.shape[1])
    extractor.train(was_training)
    return found
