"""The parts of a model that are exported as a computation: images in, named tensors out, no branch on sizes."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from sat_vg.backbone_finetuning.models.exports.contract import Asked
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.utils.errors import ConfigError


class Classifier(nn.Module):
    """``images [B, C, H, W]``, normalised → ``{"logits": [B, num_classes]}``."""

    def __init__(self, model: FineTuneModel) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self.outputs = ("logits",)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits under their name."""
        return {"logits": self.model(images)}


class Extractor(nn.Module):
    """``images [B, C, H, W]``, normalised → feature maps by stage name."""

    def __init__(self, model: FineTuneModel) -> None:
        super().__init__()
        self.extractor = model.get_feature_extractor()
        self.unit = self.extractor.size_divisibility
        self.outputs = self.extractor.out_names

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The extractor's maps.

        It pads only where it must, and a trace would keep the one way it took. Padding by a computed amount, which
        may be 0, holds for all sizes, and leaves nothing for the extractor to pad.
        """
        if self.unit > 1:
            down, right = ((self.unit - side % self.unit) % self.unit for side in images.shape[-2:])
            images = functional.pad(images, (0, right, 0, down))
        return dict(self.extractor(images))


class Normalised(nn.Module):
    """uint8 images → what ``part`` gives for them once they are normalised."""

    mean: Tensor
    scale: Tensor

    def __init__(self, part: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.part = part
        self.register_buffer("mean", torch.tensor(mean).mul(255).view(-1, 1, 1))
        self.register_buffer("scale", torch.tensor(std).mul(255).view(-1, 1, 1).reciprocal())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """``images [B, C, H, W]`` uint8."""
        outputs: dict[str, Tensor] = self.part((images.float() - self.mean) * self.scale)
        return outputs


def build_part(model: FineTuneModel, asked: Asked) -> tuple[nn.Module, tuple[str, ...]]:
    """The module that is traced, in eval mode and without gradients, and the names of its outputs.

    Raises:
        ConfigError: it is to normalise uint8 images, and the model takes values of GeoTIFFs.
    """
    part = Classifier(model) if asked.part == "classifier" else Extractor(model)
    whole: nn.Module = part
    if asked.with_normalisation:
        if model.preprocessing.files is not None:
            raise ConfigError(
                "--with_normalisation: takes uint8 images, and this model the values of GeoTIFFs "
                f"({model.preprocessing.files.dtype}); leave it out and normalise as the model card says"
            )
        whole = Normalised(part, model.preprocessing.mean, model.preprocessing.std)
    return whole.eval().requires_grad_(False), part.outputs
