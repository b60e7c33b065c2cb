"""A model's outputs on some of the validation images, kept from the best epoch for the pictures at the run's end."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sat_vg.backbone_finetuning.data.loading.loaders import Batch
from sat_vg.backbone_finetuning.utils.ranks import Ranks

MOST_IMAGES = 1000


def sampled_places(count: int) -> Tensor:
    """Places (int64, ascending) of at most ``MOST_IMAGES`` of ``count`` images, at equal distances, so of all classes."""
    if count <= MOST_IMAGES:
        return torch.arange(count)
    return torch.linspace(0, count - 1, MOST_IMAGES, dtype=torch.float64).round().long()


@dataclass(frozen=True)
class ImageOutputs:
    """A model's outputs on N validation images, on the CPU.

    Attributes:
        indices: int64 ``[N]``, places in the split, ascending.
        targets: float32 ``[N, num_classes]``, as in ``Batch``.
        logits: float32 ``[N, num_classes]``.
        vectors: float32 ``[N, D]``, what the classifier sees.
    """

    indices: Tensor
    targets: Tensor
    logits: Tensor
    vectors: Tensor


class OutputRecorder(Protocol):
    """Takes a model's outputs from a pass over images."""

    def add(self, batch: Batch, vectors: Tensor, logits: Tensor) -> None:
        """Take those of a batch: ``vectors [B, D]``, ``logits [B, num_classes]``."""


class NullRecorder(OutputRecorder):
    """Keeps nothing."""

    def add(self, batch: Batch, vectors: Tensor, logits: Tensor) -> None:
        """Do nothing."""


class SampleRecorder(OutputRecorder):
    """Keeps the outputs on a sample of the images; nothing leaves the device before ``gather``.

    Args:
        places: int64, of the images in their split.
    """

    def __init__(self, places: Tensor) -> None:
        self._places = places
        self._parts: list[tuple[Tensor, ...]] = []

    def add(self, batch: Batch, vectors: Tensor, logits: Tensor) -> None:
        """Take those of a batch: ``vectors [B, D]``, ``logits [B, num_classes]``."""
        rows = torch.isin(batch.indices, self._places).nonzero()[:, 0]
        on_device = rows.to(logits.device)
        outputs = (tensor[on_device].float() for tensor in (batch.targets, logits, vectors))
        self._parts.append((batch.indices[rows], *outputs))

    def gather(self, ranks: Ranks) -> ImageOutputs:
        """Put those of all processes together, in the order of the images; all processes have to."""
        own = [torch.cat(columns).cpu() for columns in zip(*self._parts, strict=True)]
        found = [part for part in ranks.all_gather(own) if part]
        indices, *outputs = (torch.cat(columns) for columns in zip(*found, strict=True))
        order = indices.argsort()
        return ImageOutputs(indices[order], *(column[order] for column in outputs))


class BestOutputs:
    """The outputs of the best epoch's model.

    Args:
        num_images: of the validation.

    Attributes:
        kept: of the best epoch; None where this process has not validated it, as a resumed run may not have.
    """

    def __init__(self, num_images: int) -> None:
        self._places = sampled_places(num_images)
        self.kept: ImageOutputs | None = None

    def recorder(self) -> SampleRecorder:
        """What the validation of one epoch fills."""
        return SampleRecorder(self._places)

    def keep(self, recorder: SampleRecorder, ranks: Ranks) -> None:
        """Keep those of an epoch that is the best so far; all processes have to."""
        self.kept = recorder.gather(ranks)
