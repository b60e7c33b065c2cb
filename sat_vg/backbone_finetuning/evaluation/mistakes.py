"""The images that a classifier is most wrong about, with what it looked at in them."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sat_vg.backbone_finetuning.data.loading.loaders import ImageDataset
from sat_vg.backbone_finetuning.models.attention import attention_blocks, attention_on_grid
from sat_vg.backbone_finetuning.models.explain import attention_heat
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.utils.precision import Precision


@dataclass(frozen=True)
class Views:
    """An image as the model saw it, and under the heat of what it looked at; all uint8 ``[H, W, 3]``.

    Attributes:
        image: resized and cropped, before normalisation.
        grad_cam: under the heat of the predicted class.
        attention: under the attention of the last block; None where the backbone is no ViT.
    """

    image: np.ndarray
    grad_cam: np.ndarray
    attention: np.ndarray | None


def most_confident_mistakes(confidences: Tensor, hits: Tensor, limit: int) -> list[int]:
    """Places of the images that are given to a wrong class, the most confident first, ``limit`` at the most.

    Args:
        confidences: ``[N]``, the probability of each predicted class.
        hits: bool ``[N]``, whether the prediction is right.
        limit: of the list's length.
    """
    wrong = (~hits).nonzero()[:, 0]
    order = confidences[wrong].argsort(descending=True, stable=True)
    places: list[int] = wrong[order[:limit]].tolist()
    return places


def look_at(model: FineTuneModel, dataset: ImageDataset, place: int, predicted: int, precision: Precision) -> Views:
    """What the model looked at in one image when it gave it to the class ``predicted``.

    Grad-CAM for every backbone (Selvaraju et al., 2017), and beside it the attention of a ViT.

    Args:
        model: on its device.
        dataset: of the split.
        place: of the image in the split.
        predicted: the class to explain.
        precision: where the model is.
    """
    from sat_vg.backbone_finetuning.reports.overlays import lay_over  # and matplotlib: a training needs neither

    pixels = dataset[0, place][0]
    image = model.preprocessing.pictures(pixels[None])[0].permute(1, 2, 0).contiguous().numpy()
    normalised = precision.place_images(model.preprocessing.normalise(pixels[None].to(precision.device)))
    heat = model.explain(normalised, classes=predicted)[0]
    attention = None
    if attention_blocks(model.network, model.row, model.stages):
        with torch.no_grad():
            found = attention_on_grid(model.network, model.row, model.stages, normalised, -1)
            attended = attention_heat(*found)[0]
        attention = lay_over(image, attended.cpu().numpy())
    return Views(image, lay_over(image, heat.cpu().numpy()), attention)
