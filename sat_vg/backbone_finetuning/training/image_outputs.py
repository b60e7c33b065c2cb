"""A model's outputs on some of the validation images, kept from the best epoch for the pictures at the run's end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from sat_vg.backbone_finetuning.data.loading.loaders import Batch
from sat_vg.backbone_finetuning.utils.preprocessing import Preprocessing
from sat_vg.backbone_finetuning.utils.ranks import Ranks

MOST_IMAGES = 1000
_THUMBNAIL = 48  # pixels


def sampled_places(count: int) -> Tensor:
    """Places of ``count`` images, or of ``MOST_IMAGES`` of them at equal distances: int64, ascending."""
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
    """Takes images and a model's outputs from a pass over them."""

    def add(self, batch: Batch, vectors: Tensor, logits: Tensor) -> None:
        """Take those of a batch: ``vectors [B, D]``, ``logits [B, num_classes]``."""


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


class Thumbnails(OutputRecorder):
    """Small pictures of a sample of the images; made once, as they do not depend on the model.

    Args:
        places: int64, of the images in their split.
        preprocessing: of the model.
    """

    def __init__(self, places: Tensor, preprocessing: Preprocessing) -> None:
        self._preprocessing = preprocessing
        self._made: dict[int, Tensor | None] = dict.fromkeys(places.tolist())

    @property
    def missing(self) -> list[int]:
        """Places of the images that have none yet."""
        return [place for place, thumbnail in self._made.items() if thumbnail is None]

    def add(self, batch: Batch, vectors: Tensor, logits: Tensor) -> None:
        """Make those of a batch of images."""
        self.add_images(batch)

    def add_images(self, batch: Batch) -> None:
        """Make those of a batch of images that have none yet."""
        missing = set(self.missing)
        rows = [row for row, place in enumerate(batch.indices.tolist()) if place in missing]
        if not rows:
            return
        pictures = self._preprocessing.pictures(batch.images[rows].cpu()).float()
        small = functional.interpolate(pictures, size=_THUMBNAIL, mode="area").round().to(torch.uint8)
        self._made.update(zip(batch.indices[rows].tolist(), small, strict=True))

    def stack(self) -> Tensor:
        """All of them, uint8 ``[N, 3, S, S]``, in the order of the images."""
        return torch.stack([thumbnail for thumbnail in self._made.values() if thumbnail is not None])


class BestOutputs:
    """The outputs of the best epoch's model, taken from its validation.

    Args:
        num_images: of the validation.
        preprocessing: of the model.

    Attributes:
        thumbnails: of the images; those that no validation of this process has seen are missing.
        kept: outputs of the best epoch; None where another process validated it, before a resume.
        metrics: of the best epoch, as they stand in best_model.pt; None where ``kept`` is.
    """

    def __init__(self, num_images: int, preprocessing: Preprocessing) -> None:
        self._places = sampled_places(num_images)
        self._running = SampleRecorder(self._places)
        self.thumbnails = Thumbnails(self._places, preprocessing)
        self.kept: ImageOutputs | None = None
        self.metrics: Mapping[str, float] | None = None

    def recorders(self, of_images: bool) -> Sequence[OutputRecorder]:
        """What the validation of the next epoch fills, with batches of images or of stored features."""
        self._running = SampleRecorder(self._places)
        return (self._running, self.thumbnails) if of_images else (self._running,)

    def keep(self, ranks: Ranks) -> None:
        """Keep the outputs of the last validation, which is the best so far; all processes have to."""
        self.kept = self._running.gather(ranks)
