"""Several models of the same classes as one: their probabilities, over several views of an image, are averaged."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sat_vg.backbone_finetuning.configs.choices import MOST_VIEWS, VIEWS_OF_AUGMENTATION
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.models.image_batches import normalise_and_fill
from sat_vg.backbone_finetuning.models.views import views_of
from sat_vg.backbone_finetuning.utils.errors import ConfigError


@dataclass(frozen=True)
class Ensemble:
    """Models of the same classes in the same order, whose probabilities are averaged; or one, over several views.

    Raises:
        ConfigError: the models' classes differ, or an image has not so many views.
    """

    models: tuple[FineTuneModel, ...]
    """In eval mode or not; each resizes and normalises images in its own way."""
    num_views: int = 1
    """Of each image, for each model."""

    def __post_init__(self) -> None:
        if not self.models:
            raise ConfigError("an ensemble needs one model at least")
        next(views_of(torch.empty(0, 1, 1, 1), self.num_views))
        for number, model in enumerate(self.models[1:], start=2):
            _require_same_classes(self.models[0], model, number)

    @property
    def passes(self) -> int:
        """How often an image goes through a network."""
        return len(self.models) * self.num_views

    def predict_probabilities(self, images: Tensor) -> Tensor:
        """Probabilities of the classes, float32 ``[B, num_classes]``.

        Args:
            images: ``[B, C, H, W]`` of any size, not normalised: uint8 where the models read 8-bit images; of models
                for GeoTIFFs NaN where values are missing.
        """
        found = []
        for model in self.models:
            device = next(model.parameters()).device
            pixels = model.preprocessing.geometry()(images.to(device))
            normalised = normalise_and_fill(model.preprocessing, pixels)
            found.append(model.predict_probabilities(normalised, self.num_views).cpu())
        return torch.stack(found).mean(0)


def _require_same_classes(first: FineTuneModel, other: FineTuneModel, number: int) -> None:
    """Raise a ConfigError that names the model and the first class that differs."""
    name = other.provenance.get("checkpoint", f"model {number}")
    if first.task != other.task:
        raise ConfigError(
            f"{name!r} is a {other.task} model and the first one is {first.task}: their probabilities cannot be "
            "averaged; leave it out"
        )
    same = "only models of the same classes in the same order can be averaged; leave it out"
    for place, (mine, theirs) in enumerate(zip(first.class_names, other.class_names, strict=False), start=1):
        if mine != theirs:
            raise ConfigError(
                f"{name!r} has {theirs!r} as class {place} and the first model {mine!r}: {same}, or train it on the "
                "same classes"
            )
    if len(first.class_names) != len(other.class_names):
        counts = f"{len(other.class_names)} classes and the first model {len(first.class_names)}"
        raise ConfigError(f"{name!r} has {counts}: {same}")


def views_that_fit(model: FineTuneModel, wanted: int) -> tuple[int, str]:
    """How many of ``wanted`` views show images as the training did, and a line about it, which may be empty.

    A model that was trained on images with an "up" has never seen them turned.
    """
    config = model.provenance.get("config") or {}
    augmentation = config.get("augmentation") if config.get("use_augmentation", True) else None
    allowed = next((count for name, count in VIEWS_OF_AUGMENTATION.items() if name == augmentation), MOST_VIEWS)
    if wanted <= allowed:
        return wanted, ""
    return allowed, f"views: {allowed}, not {wanted}, as the model was trained with augmentation = {augmentation}"
