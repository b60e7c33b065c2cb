"""The images that a classifier is most wrong about, with what it looked at in them."""

import numpy as np
import torch
from torch import Tensor

from sat_vg.backbone_finetuning.data.loading.loaders import ImageDataset
from sat_vg.backbone_finetuning.models.attention import attention_blocks, attention_on_grid
from sat_vg.backbone_finetuning.models.explain import attention_heat
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.utils.precision import Precision


def most_confident_mistakes(confidences: Tensor, hits: Tensor, limit: int) -> list[int]:
    """Places of the images whose ``hits [N]`` is false, the most confident first, ``limit`` at the most."""
    wrong = (~hits).nonzero()[:, 0]
    order = confidences[wrong].argsort(descending=True, stable=True)
    places: list[int] = wrong[order[:limit]].tolist()
    return places


def look_at(
    model: FineTuneModel, dataset: ImageDataset, place: int, predicted: int, precision: Precision
) -> dict[str, np.ndarray]:
    """An image as the model saw it, and under the heat of what made it the class ``predicted``.

    Returns:
        uint8 ``[H, W, 3]`` each: ``image``, ``Grad-CAM`` (Selvaraju et al., 2017), and of a ViT ``attention``.
    """
    from sat_vg.backbone_finetuning.reports.overlays import lay_over  # and matplotlib: a training needs neither

    pixels = dataset[0, place][0]
    image = model.preprocessing.pictures(pixels[None])[0].permute(1, 2, 0).contiguous().numpy()
    normalised = precision.place_images(model.preprocessing.normalise(pixels[None].to(precision.device)))
    views = {
        "image": image,
        "Grad-CAM": lay_over(image, model.explain(normalised, classes=predicted)[0].cpu().numpy()),
    }
    if attention_blocks(model.network, model.row, model.stages):
        with torch.no_grad():
            found = attention_on_grid(model.network, model.row, model.stages, normalised, -1)
            views["attention"] = lay_over(image, attention_heat(*found)[0].cpu().numpy())
    return views
