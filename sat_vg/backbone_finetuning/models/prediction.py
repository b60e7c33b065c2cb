"""Classes and probabilities of images by a model: of files, PIL images, arrays and tensors."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sat_vg.backbone_finetuning.data.checks.image_traits import describe_decisions
from sat_vg.backbone_finetuning.data.reading.decoder import Traits
from sat_vg.backbone_finetuning.data.reading.geo import decoder_of
from sat_vg.backbone_finetuning.data.sources.source import ImageQuery
from sat_vg.backbone_finetuning.data.sources.table import list_images
from sat_vg.backbone_finetuning.models.image_batches import normalise_and_fill
from sat_vg.backbone_finetuning.models.staged_classifier import StagedClassifier
from sat_vg.backbone_finetuning.utils.errors import ConfigError, UserError
from sat_vg.backbone_finetuning.utils.preprocessing import RGB, ToPixels

LIKELIER_THAN_NOT = 0.5


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image."""

    label: str
    """The likeliest class."""
    probability: float
    """Of that class, from 0 to 1."""
    probabilities: dict[str, float]
    """Of every class by name, in the order of the model's outputs; they sum to 1 where an image has one class."""
    labels: tuple[str, ...]
    """The likeliest class, or where an image can have several all that are likelier than not, which may be none."""
    path: str | None = None
    """Of the image's file; None: it was in memory."""


@torch.no_grad()
def predict(model: StagedClassifier, images: Any, batch_size: int = 16) -> list[Prediction]:
    """Predict the classes of images; they are resized and normalised as in the training.

    The model is run in eval mode, on the device that it is on, and left in the mode that it was in. Arguments, result
    and errors are those of ``FineTuneModel.predict``.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size = {batch_size}: must be 1 or more; for example 16")
    to_pixels, geometry = ToPixels(model.preprocessing), model.preprocessing.geometry()
    traits: dict[str, Traits] = {}
    found = ((path, geometry(_with_values(to_pixels(pixels)))) for path, pixels in _each(model, images, traits))
    device = next(model.parameters()).device
    results: list[Prediction] = []
    while group := list(islice(found, batch_size)):
        batch = torch.stack([pixels for _, pixels in group]).to(device)
        shares = model.predict_probabilities(normalise_and_fill(model.preprocessing, batch)).cpu()
        if not shares.isfinite().all():
            raise UserError(
                "the model's probabilities are no numbers: its weights are broken; use another checkpoint"
            )
        results += [_prediction(model, row, path) for (path, _), row in zip(group, shares.tolist(), strict=True)]
    for text in describe_decisions(traits):
        warnings.warn(text, stacklevel=3)
    return results


def _with_values(pixels: Tensor) -> Tensor:
    if not pixels.numel():
        raise UserError(f"an image of shape {list(pixels.shape)} has no pixels; leave it out")
    if not pixels.isfinite().any():
        raise UserError(f"an image of shape {list(pixels.shape)} has no value: all are NaN or infinite; leave it out")
    return pixels


def _each(
    model: StagedClassifier, images: Any, traits: dict[str, Traits]
) -> Iterator[tuple[str | None, Image.Image | Tensor]]:
    """Every image with the path of its file, if it came from one; ``traits`` takes those of files."""
    if isinstance(images, (str, Path)):
        require_bands_in_files(model)
        decoder = decoder_of(model.preprocessing)
        for path in list_images(ImageQuery(path=str(images))).paths:
            picture = decoder.picture(path)
            if picture.traits.left_a_choice:
                traits[path] = picture.traits
            yield path, picture.pixels
    elif isinstance(images, Image.Image):
        yield None, images
    elif isinstance(images, np.ndarray):
        yield None, pixels_of(images)
    elif isinstance(images, Tensor):
        yield from ((None, image) for image in (images if images.ndim == 4 else images[None]))
    elif isinstance(images, Sequence) or hasattr(images, "__iter__"):
        for image in images:
            yield from _each(model, image, traits)
    else:
        raise UserError(
            f"images of type {type(images).__name__}: give a path, a PIL image, a uint8 array [H, W, C], a tensor "
            "[C, H, W], or a list of them"
        )


def require_bands_in_files(model: StagedClassifier, name: str = "the model") -> None:
    """Refuse a model that takes bands which it cannot find in image files."""
    preprocessing = model.preprocessing
    if preprocessing.bands != RGB and preprocessing.files is None:
        raise ConfigError(
            f"{name} takes images with the bands {', '.join(preprocessing.bands)} and does not say where these lie "
            "in files, as it was not trained with --bands. Call the model in Python with tensors [C, H, W]"
        )


def pixels_of(array: np.ndarray) -> Tensor:
    """An image of an array uint8 ``[H, W, C]`` as a tensor ``[C, H, W]``. Raises UserError where it is none."""
    channels = array.shape[-1] if array.ndim == 3 else 0
    if array.dtype != np.uint8 or not channels:
        raise UserError(
            f"array of type {array.dtype} and shape {list(array.shape)}: give uint8 [H, W, C]; other values as a "
            "tensor [C, H, W]"
        )
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))


def _prediction(model: StagedClassifier, shares: Sequence[float], path: str | None) -> Prediction:
    probabilities = dict(zip(model.class_names, shares, strict=True))
    place = max(range(len(shares)), key=shares.__getitem__)
    label = model.class_names[place]
    given = tuple(name for name, share in probabilities.items() if share >= LIKELIER_THAN_NOT)
    return Prediction(label, shares[place], probabilities, given if model.task == "multi_label" else (label,), path)
