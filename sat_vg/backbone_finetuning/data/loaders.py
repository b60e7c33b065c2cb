"""Datasets and loaders: keys of samples in, uint8 batches out, the same with any number of workers."""

import signal
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from sat_vg.backbone_finetuning.data.decoding import decode_rgb
from sat_vg.backbone_finetuning.data.sampling import EpochBatches, InOrder, SampleKey
from sat_vg.backbone_finetuning.data.sources import Split
from sat_vg.backbone_finetuning.utils.seeding import Purpose, derive_seed, seed_default_generator


class Batch(NamedTuple):
    """A batch as it leaves the loader.

    Attributes:
        images: uint8 ``[B, 3, H, W]``.
        targets: float32 ``[B, num_classes]``; each row sums to 1.
        indices: int64 ``[B]``, the images' places in their split.
    """

    images: Tensor
    targets: Tensor
    indices: Tensor

    def to(self, device: torch.device) -> "Batch":
        """The batch on another device."""
        return Batch(
            self.images.to(device, non_blocking=True),
            self.targets.to(device, non_blocking=True),
            self.indices,
        )

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory, for quick copies to a GPU."""
        return Batch(self.images.pin_memory(), self.targets.pin_memory(), self.indices)


class ImageDataset(Dataset[tuple[Tensor, int, int]]):
    """Decoded and transformed images of a split; the transform's random numbers depend on the key alone."""

    def __init__(self, split: Split, transform: nn.Module, seed: int) -> None:
        self.split, self.transform, self.seed = split, transform, seed

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: SampleKey) -> tuple[Tensor, int, int]:
        """Image (uint8 ``[3, H, W]``), label and index of the sample ``(epoch, index)``."""
        epoch, index = key
        seed_default_generator(derive_seed(self.seed, Purpose.SAMPLE, epoch, index))
        return self.transform(decode_rgb(self.split.paths[index])), self.split.labels[index], index


class _Collate:
    """Stacks samples into a ``Batch`` with targets as distributions over the classes."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes

    def __call__(self, samples: Sequence[tuple[Tensor, int, int]]) -> Batch:
        images, labels, indices = zip(*samples, strict=True)
        targets = nn.functional.one_hot(torch.tensor(labels), self.num_classes).float()
        return Batch(torch.stack(images), targets, torch.tensor(indices))


def _leave_interrupts_to_the_parent(worker_id: int) -> None:
    # Ctrl-C reaches the whole process group; the workers must outlive it, so that the step can be finished.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def training_loader(
    dataset: ImageDataset, batches: EpochBatches, num_workers: int, device: torch.device
) -> DataLoader[Batch]:
    """A loader that yields the batches that ``batches`` is set to, with workers that live through all epochs."""
    return _loader(dataset, batches, num_workers, device)


def validation_loader(
    dataset: ImageDataset, batch_size: int, num_workers: int, device: torch.device
) -> DataLoader[Batch]:
    """A loader that yields every image once, in order."""
    return _loader(dataset, InOrder(len(dataset), batch_size), num_workers, device)


def _loader(
    dataset: ImageDataset,
    batches: Sampler[list[SampleKey]],
    num_workers: int,
    device: torch.device,
) -> DataLoader[Batch]:
    return DataLoader(
        dataset,  # type: ignore[arg-type]  # a dataset of samples, a loader of batches
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=_Collate(len(dataset.split.class_names)),
        pin_memory=device.type == "cuda",
        persistent_workers=num_workers > 0,
        worker_init_fn=_leave_interrupts_to_the_parent,
        # The loader draws a base seed for its workers; it must not touch the generator that dropout uses.
        generator=torch.Generator(),
    )
