"""An exported file beside the model it was made of: the same images through both."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sat_vg.backbone_finetuning.models.exports.contract import Contract, ExportFailedError, LoadedExport
from sat_vg.backbone_finetuning.models.exports.tracing import REFUSALS, first_line
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel


@dataclass(frozen=True)
class Difference:
    """Differences between the file's and the model's outputs on one batch of random images.

    Attributes:
        batch: number of images.
        height, width: size of the images, in pixels.
        absolute: largest difference of any number.
        relative: largest difference of any number, as a share of the largest number of its output.
        deviation: largest difference where an output stays within ±1, and as a share of its largest number where it
            does not; the tolerance is for this one.
    """

    batch: int
    height: int
    width: int
    absolute: float
    relative: float
    deviation: float


def compare(model: FineTuneModel, loaded: LoadedExport) -> list[Difference]:
    """Run the file and the model on random images of two batch sizes and, where it takes them, two sizes.

    Raises:
        ExportFailedError: the file does not run, or gives other outputs.
    """
    reference = _reference(model, loaded.contract)
    size = model.preprocessing.image_size
    generator = torch.Generator().manual_seed(0)
    found = []
    for batch, height, width in trial_shapes(loaded.contract, size):
        shape = (batch, model.in_channels, height, width)
        images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
        normalised = model.preprocessing.normalise(images)
        with torch.no_grad():
            expected = reference(normalised)
            try:
                given = loaded.run(images if loaded.contract.dtype == "uint8" else normalised)
            except REFUSALS as error:
                raise ExportFailedError(
                    f"it does not run on {batch} × {height} × {width}: {first_line(error)}"
                ) from error
        found.append(Difference(batch, height, width, *_largest(expected, given)))
    return found


def trial_shapes(contract: Contract, trained: int) -> Sequence[tuple[int, int, int]]:
    """Batch, height and width of the trials."""
    if contract.fixed_size is not None:
        return [(1, contract.fixed_size, contract.fixed_size), (3, contract.fixed_size, contract.fixed_size)]
    unit = contract.multiple
    first = math.ceil(max(trained, contract.smallest) / unit) * unit
    down, across = (37, 22) if unit == 1 else (2 * unit, unit)  # odd sizes are where padding and rounding show
    return [(1, first, first), (3, first, first), (2, first + down, first + across)]


def _reference(model: FineTuneModel, contract: Contract) -> Callable[[Tensor], Mapping[str, Tensor]]:
    if contract.part == "classifier":
        return lambda images: {"logits": model(images)}
    if contract.part == "vector":
        return lambda images: {"vector": model.forward_pooled(images)}
    extractor = model.get_feature_extractor()
    return lambda images: {name: value for name, value in extractor(images).items() if name in contract.outputs}


def _largest(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> tuple[float, float, float]:
    if list(expected) != list(given) or any(expected[name].shape != given[name].shape for name in expected):
        raise ExportFailedError(f"it gives {_shapes(given)} and the model {_shapes(expected)}")
    absolute = relative = deviation = 0.0
    for name, right in expected.items():
        difference = (given[name].double() - right.double()).abs().max().item()
        if math.isnan(difference):
            difference = math.inf
        scale = right.double().abs().max().item()
        absolute = max(absolute, difference)
        relative = max(relative, difference / scale if scale else math.inf if difference else 0.0)
        deviation = max(deviation, difference / max(1.0, scale))
    return absolute, relative, deviation


def _shapes(outputs: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {list(value.shape)}" for name, value in outputs.items()) or "nothing"
