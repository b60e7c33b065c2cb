"""Explanations of predictions: Grad-CAM for every backbone, and the attention of a ViT."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sat_vg.backbone_finetuning.models.attention import attention_on_grid
from sat_vg.backbone_finetuning.models.freezing import check_stage_names, in_eval_mode
from sat_vg.backbone_finetuning.models.image_batches import require_batch
from sat_vg.backbone_finetuning.models.staged_classifier import StagedClassifier
from sat_vg.backbone_finetuning.utils.errors import ConfigError, WriteError
from sat_vg.backbone_finetuning.utils.preprocessing import Preprocessing
from sat_vg.backbone_finetuning.utils.printable import list_some, shortened
from sat_vg.backbone_finetuning.utils.safe_files import atomic_write

_LONGEST = 20  # characters of a class name over an image
_SMALLEST_CONTRAST = 1e-5  # of the highest value; smaller differences are rounding and no picture of anything


def grad_cam(
    model: StagedClassifier, images: Tensor, classes: Tensor | int | str | None = None, stage: str | None = None
) -> Tensor:
    """Where in the images a class was seen (Grad-CAM, Selvaraju et al., 2017).

    The channels of a stage's map are weighted by the mean gradient of the class's logit, summed, cut off below zero,
    resampled bilinearly to the images' size and divided by the highest value. An image in which nothing speaks for
    the class has a heat of zeros. As in the paper, the map's cells are spread evenly over the image; where strided
    convolutions pad on both sides, what a cell sees is centred up to half a cell further up and left.

    The model is run in eval mode and left as it was: training flags, parameters, ``requires_grad`` and ``.grad``;
    which stages are frozen makes no difference. Arguments, result and errors are those of ``FineTuneModel.explain``.
    In a ViT, whose class token alone is read at the end, the deepest map that the logit depends on is the input of
    the last block. Earlier stages show finer but less meaningful places.
    """
    _check_batch(model, images)
    if not images.is_floating_point():
        raise ConfigError(f"images of type {images.dtype}: normalise them first, by model.preprocessing.normalise")
    if stage is not None:
        check_stage_names([stage], model.stage_names, "stage")
        with_map = [each.name for each in model.stages if each.gives_map]
        if stage not in with_map:
            raise ConfigError(
                f"stage = {stage!r}: it comes after the pooling, where no place in the image is left; choose one of "
                f"{', '.join(with_map)}"
            )
    # In the caller's inference mode there would be no gradients.
    with in_eval_mode(model), torch.inference_mode(False):
        heat = _heat_of_deepest(model, _as_the_model(model, images), classes, stage)
    return heat.to(images.device)


def attention_heat(
    weights: Tensor, grid: tuple[int, int], num_prefix_tokens: int = 1, of_class_token: bool = True
) -> Tensor:
    """What the class token, or else the average patch, attends to in one block, as the mean over the heads.

    Arguments are the fields of ``AttentionOnGrid``.

    Returns:
        Heat ``[B, height, width]``, float32; the least attended place of each image is 0 and the most attended 1, or
        all are 0 where the attention is the same everywhere.

    Raises:
        ConfigError: the tokens do not form this grid.
    """
    num_tokens = num_prefix_tokens + grid[0] * grid[1]
    if weights.ndim != 4 or tuple(weights.shape[2:]) != (num_tokens, num_tokens):
        raise ConfigError(
            f"weights of shape {list(weights.shape)} with grid = {grid}: with {num_prefix_tokens} before the patches "
            f"these make {num_tokens} tokens, so the shape must be [B, heads, {num_tokens}, {num_tokens}]"
        )
    readers = slice(1) if of_class_token else slice(num_prefix_tokens, None)
    received = weights[:, :, readers, num_prefix_tokens:].float().mean((1, 2))
    lowest, highest = received.amin(1, keepdim=True), received.amax(1, keepdim=True)
    contrast = highest - lowest
    is_flat = contrast <= _SMALLEST_CONTRAST * highest
    heat = ((received - lowest) / contrast.masked_fill(is_flat, 1)).masked_fill(is_flat, 0)
    return heat.reshape(-1, *grid)


def save_explanation(
    model: StagedClassifier,
    images: Tensor,
    path: str | Path,
    *,
    kind: Literal["grad_cam", "attention"] = "grad_cam",
    classes: Tensor | int | str | None = None,
    stage: str | None = None,
    layer_idx: int | None = None,
) -> None:
    """Draw images beside what the model looked at in them, as a PNG; see ``FineTuneModel.save_explanation``."""
    path = Path(path)
    _check_choice(kind, path, classes, stage, layer_idx)
    _check_batch(model, images)
    if not (images.is_floating_point() or images.dtype == torch.uint8):
        raise ConfigError(f"images of type {images.dtype}: give uint8, or floats that are normalised")
    normalised = images if images.is_floating_point() else model.preprocessing.normalise(images)
    if kind == "grad_cam":
        picked = None if classes is None else _class_indices(model, classes, len(images))
        heat = grad_cam(model, normalised, picked, stage)
        heading = f"{model.backbone}: Grad-CAM" + (f" of {stage}" if stage else "")
    else:
        picked = None
        block = -1 if layer_idx is None else layer_idx
        inputs = _as_the_model(model, normalised)
        heat = attention_heat(*attention_on_grid(model.network, model.row, model.stages, inputs, block))
        heading = f"{model.backbone}: attention of {'the last block' if block == -1 else f'block {block}'}"
    titles = _titles(model, normalised, picked)
    # Here and not above: a model is built and loaded without matplotlib.
    from sat_vg.backbone_finetuning.reports.overlays import draw_overlays

    figure = draw_overlays(_pictures(images, model.preprocessing), heat.cpu().numpy(), titles, heading)
    try:
        with atomic_write(path) as file:
            figure.savefig(file, format="png", dpi=110)
    except OSError as error:
        raise WriteError(
            f"{str(path)!r} cannot be written: {error}; make room there or choose another path"
        ) from error


def _heat_of_deepest(
    model: StagedClassifier, images: Tensor, classes: Tensor | int | str | None, stage: str | None
) -> Tensor:
    """Grad-CAM of ``stage``, or of the deepest one whose map the logit depends on."""
    last = len(model.stages) if stage is None else model.stage_names.index(stage) + 1
    outputs = []
    with torch.no_grad():
        value = images
        for each in model.stages[:last]:
            # A copy goes on, here and below, since stages may begin with a layer that works in place.
            value = each.run(model.network, value.clone())
            outputs.append(value)
    image_hw = (images.shape[-2], images.shape[-1])
    for position in reversed(range(last)):
        if not model.stages[position].gives_map:
            continue
        activation = outputs[position].detach().clone().requires_grad_()
        with torch.enable_grad():
            logits = model.forward_head(model.pool(model.run_stages(activation.clone(), start=position + 1)))
            indices = logits.argmax(1) if classes is None else _class_indices(model, classes, len(logits))
            explained = logits.gather(1, indices.to(logits.device)[:, None]).sum()
            (gradient,) = torch.autograd.grad(explained, activation)  # no parameter gets one
        # Both are only rearranged by to_map, so the gradient of the map is the map of the gradient.
        maps, slopes = (
            model.row.family.to_map(model.network, tensor.detach(), image_hw).float()
            for tensor in (activation, gradient)
        )
        if stage is not None or bool(slopes.any()):
            heat = functional.relu((slopes.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True))
            heat = functional.interpolate(heat, size=image_hw, mode="bilinear", align_corners=False)[:, 0]
            highest = heat.amax((1, 2), keepdim=True)
            return heat / highest.masked_fill(highest == 0, 1)
    return images.new_zeros((len(images), *image_hw), dtype=torch.float32)


def _class_indices(model: StagedClassifier, classes: Tensor | int | str, batch: int) -> Tensor:
    """Indices ``[batch]`` of the classes to explain."""
    if isinstance(classes, str):
        if classes not in model.class_names:
            near = difflib.get_close_matches(classes, model.class_names, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(
                f"classes = {classes!r}: no class of this model; {hint}Classes: {list_some(model.class_names, 20)}"
            )
        classes = model.class_names.index(classes)
    indices = torch.as_tensor(classes)
    if indices.is_floating_point() or indices.dtype == torch.bool or tuple(indices.shape) not in ((), (batch,)):
        raise ConfigError(
            f"classes of shape {list(indices.shape)} and type {indices.dtype}: give one name, one index, or a tensor "
            f"of {batch} indices, one for each image"
        )
    wrong = [index for index in indices.flatten().tolist() if not 0 <= index < model.num_classes]
    if wrong:
        raise ConfigError(f"classes = {wrong[0]}: this model has classes 0 to {model.num_classes - 1}")
    return indices.long().expand(batch)


def _check_batch(model: StagedClassifier, images: Tensor) -> None:
    require_batch(images, model.in_channels)
    if not len(images):
        raise ConfigError(f"images of shape {list(images.shape)}: give one image or more")


def _check_choice(
    kind: str, path: Path, classes: Tensor | int | str | None, stage: str | None, layer_idx: int | None
) -> None:
    """Refuse arguments that would be passed over in silence."""
    if kind not in ("grad_cam", "attention"):
        raise ConfigError(f"kind = {kind!r}: must be 'grad_cam' or 'attention'")
    if path.suffix.lower() != ".png":
        raise ConfigError(f"path = {str(path)!r}: a PNG is written; name it {path.with_suffix('.png').name!r}")
    if kind == "attention" and not (classes is None and stage is None):
        name = "stage" if classes is None else "classes"
        raise ConfigError(f"{name} is for kind = 'grad_cam'; attention is the same for every class: leave it out")
    if kind == "grad_cam" and layer_idx is not None:
        raise ConfigError(f"layer_idx = {layer_idx} is for kind = 'attention'; Grad-CAM takes the name of a stage")


def _as_the_model(model: StagedClassifier, images: Tensor) -> Tensor:
    reference = next(model.network.parameters())
    return images.to(device=reference.device, dtype=reference.dtype)


def _titles(model: StagedClassifier, images: Tensor, explained: Tensor | None) -> list[str]:
    """What was predicted, with its probability, and on a second line what is explained, where it was chosen."""
    shares = model.predict_probabilities(_as_the_model(model, images))
    titles, names = [], [shortened(name, _LONGEST) for name in model.class_names]
    for number, (share, index) in enumerate(zip(*(tensor.tolist() for tensor in shares.max(1)), strict=True)):
        title = f"{names[index]} {100 * share:.0f} %"
        if explained is not None:
            chosen = int(explained[number])
            title += f"\nheat: {names[chosen]} {100 * shares[number, chosen].item():.0f} %"
        titles.append(title)
    return titles


def _pictures(images: Tensor, preprocessing: Preprocessing) -> np.ndarray:
    """Images as they are drawn: uint8 ``[B, H, W, 3]``."""
    images = images.detach().cpu()
    if images.is_floating_point():
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
        images = (images.float() * std + mean) * preprocessing.scale
        if preprocessing.files is None:
            images = images.round_().clamp_(0, 255).to(torch.uint8)
    return preprocessing.pictures(images).permute(0, 2, 3, 1).contiguous().numpy()
