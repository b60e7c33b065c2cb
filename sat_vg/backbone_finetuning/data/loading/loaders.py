"""From image files to batches.

``sampling.BatchPlan`` divides an epoch into batches of indices. A ``Pass`` over some of them hands keys ``(part,
view, index)`` to torch's ``DataLoader``, whose workers look each up in an ``ImageDataset``: read the file,
transform the image. ``_collate`` stacks images and targets into a ``Batch``. All random numbers depend on seed and
key alone, so the batches are the same with any number of workers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sat_vg.backbone_finetuning.data.loading.sampling import BatchPlan, Part, PartKey, RunningPass, SampleKey
from sat_vg.backbone_finetuning.data.loading.workers import Workers, leave_signals_to_the_parent
from sat_vg.backbone_finetuning.data.reading.decoding import decode_rgb
from sat_vg.backbone_finetuning.data.sources.splits import Split
from sat_vg.backbone_finetuning.utils.ranks import Share
from sat_vg.backbone_finetuning.utils.seeding import Purpose, derive_seed, seed_default_generator
from sat_vg.backbone_finetuning.utils.stop_signals import held_back


class Batch(NamedTuple):
    """A batch as it leaves the loader."""

    images: Tensor  # uint8 ``[B, 3, H, W]``; of GeoTIFFs float32 ``[B, C, H, W]``
    # float32 ``[B, num_classes]``; each row sums to 1, but where images can have several classes or none
    targets: Tensor
    indices: Tensor  # int64 ``[B]``, the images' places in their split

    def to(self, device: torch.device) -> "Batch":
        """The batch on another device."""
        # Only CUDA keeps what it still copies from: MPS would read memory that is someone else's by then.
        is_cuda = device.type == "cuda"
        return Batch(
            self.images.to(device, non_blocking=is_cuda), self.targets.to(device, non_blocking=is_cuda), self.indices
        )

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory, for quick copies to a GPU."""
        return Batch(self.images.pin_memory(), self.targets.pin_memory(), self.indices)


@dataclass(eq=False)
class ImageDataset(Dataset[tuple[Tensor, int, int]]):
    """Decoded and transformed images of a split; the transform's random numbers depend on the key alone.

    ``read`` gives a file's image, and ``transform`` makes uint8 ``[3, H, W]`` of it.
    """

    split: Split
    transform: nn.Module
    seed: int
    read: Callable[[str], Tensor] = decode_rgb

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: SampleKey) -> tuple[Tensor, int, int]:
        """Image (uint8 ``[3, H, W]``), label and index of the sample ``(view, index)``."""
        view, index = key
        seed_default_generator(derive_seed(self.seed, Purpose.SAMPLE, view, index))
        return self.transform(self.read(self.split.paths[index])), self.split.labels[index], index


@dataclass(eq=False)
class _Parts(Dataset[tuple[Tensor, int, int]]):
    """The datasets of a run as one, so that one set of worker processes serves all of them."""

    parts: Mapping[Part, ImageDataset]

    def __getitem__(self, key: PartKey) -> tuple[Tensor, int, int]:
        part, view, index = key
        return self.parts[part][view, index]


class ImageBatches:
    """All passes over a run's images, by one set of workers that lives through them; one pass is under way at a time.

    Training batches follow ``plan``; other passes take ``in_order_size`` images at a time.
    """

    def __init__(
        self, parts: Mapping[Part, ImageDataset], plan: BatchPlan, in_order_size: int, workers: Workers
    ) -> None:
        self.parts, self.plan, self.in_order_size = parts, plan, in_order_size
        self._running = RunningPass()
        self._loader = _loader(_Parts(parts), parts[Part.TRAINING].split, self._running, workers, is_read_again=True)

    def training(self, epoch: int, view: int, first_batch: int = 0) -> "Pass":
        """This process's share of an epoch's batches, from any one on; ``view`` numbers the images' augmentation."""
        return Pass(self._loader, self._running, Part.TRAINING, view, self.plan.own_batches(epoch)[first_batch:])

    def in_order(self, part: Part, view: int = 0) -> "Pass":
        """Every image of a part once, in its order."""
        batches = [few.tolist() for few in torch.arange(len(self.parts[part])).split(self.in_order_size)]
        return Pass(self._loader, self._running, part, view, batches)


@dataclass(frozen=True, eq=False)
class Pass:
    """One pass over images; may be iterated again once an iteration has ended."""

    loader: DataLoader[Batch]
    running: RunningPass
    part: Part
    view: int
    indices: Sequence[Sequence[int]]  # of the images, batch by batch

    def shared(self, share: Share) -> "Pass":
        """The batches of one of several processes."""
        return replace(self, indices=share.of_many(self.indices))

    def __iter__(self) -> Iterator[Batch]:
        self.running.begin(self.part, self.view, self.indices)
        return iter(self.loader)

    def __len__(self) -> int:
        return len(self.indices)


class _Loader(DataLoader[Batch]):
    """A loader whose workers get no stop signal before they can leave it to the process that started them."""

    def __iter__(self) -> Any:
        with held_back():
            return super().__iter__()


def target_rows(split: Split) -> Tensor:
    """The target of each label, float32 ``[num_labels, num_classes]``: ones at its classes."""
    sets = split.label_sets
    if sets is None:
        return torch.eye(len(split.class_names))
    rows = torch.zeros(len(sets), len(split.class_names))
    for row, classes in zip(rows, sets, strict=True):
        row[list(classes)] = 1
    return rows


def _collate(rows: Tensor, samples: Sequence[tuple[Tensor, int, int]]) -> Batch:
    """Stack samples into a ``Batch``; ``rows`` are the targets of all labels."""
    images, labels, indices = zip(*samples, strict=True)
    return Batch(torch.stack(images), rows[torch.tensor(labels)], torch.tensor(indices))


def validation_loader(dataset: ImageDataset, batch_size: int, workers: Workers) -> DataLoader[Batch]:
    """A loader that yields every image once, in order; its workers end with the pass."""
    batches = [[(0, index) for index in few.tolist()] for few in torch.arange(len(dataset)).split(batch_size)]
    return _loader(dataset, dataset.split, batches, workers, is_read_again=False)


def _loader(
    dataset: Dataset[tuple[Tensor, int, int]],
    split: Split,
    batches: RunningPass | list[list[SampleKey]],
    workers: Workers,
    is_read_again: bool,
) -> DataLoader[Batch]:
    return _Loader(
        dataset,  # type: ignore[arg-type]  # a dataset of samples, a loader of batches
        batch_sampler=batches,
        num_workers=workers.count,
        collate_fn=partial(_collate, target_rows(split)),
        pin_memory=workers.device.type == "cuda",
        persistent_workers=workers.count > 0 and is_read_again,
        timeout=workers.timeout if workers.count else 0,
        worker_init_fn=leave_signals_to_the_parent,
        # The loader draws a base seed for its workers; it must not touch the generator that dropout uses.
        generator=torch.Generator(),
    )
