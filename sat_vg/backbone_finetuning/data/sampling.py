"""Which images form which batch: a pure function of seed and epoch, so a run can go on at any step."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import Sampler

from sat_vg.backbone_finetuning.utils.seeding import Purpose, derive_seed, torch_generator

SampleKey = tuple[int, int]  # (epoch, index of the image)


def num_parts(count: int, size: int) -> int:
    """Into how many parts of nearly ``size``, none of a single one, ``count`` things are divided."""
    parts = -(-count // size)
    leaves_a_single_one = size > 1 and count > 1 and count // parts == 1
    return max(1, count // size) if leaves_a_single_one else parts


@dataclass(frozen=True)
class BatchPlan:
    """The division of an epoch into batches.

    The batches of an epoch differ by one image at the most: nothing is dropped, and no image weighs more than
    another in a short last batch. A batch of one image, which batch norm could not take, comes about only where
    ``batch_size`` or the data set is one.

    Attributes:
        num_samples: images in the epoch.
        batch_size: the largest batch (with 2 and an odd number of images, one batch has 3).
        seed: of the order.
    """

    num_samples: int
    batch_size: int
    seed: int

    @property
    def num_batches(self) -> int:
        """Batches in an epoch."""
        return num_parts(self.num_samples, self.batch_size)

    @property
    def batch_sizes(self) -> tuple[int, int]:
        """The smallest and the largest batch."""
        return self.num_samples // self.num_batches, -(-self.num_samples // self.num_batches)

    def batches(self, epoch: int) -> list[list[int]]:
        """The indices of every batch of ``epoch``."""
        generator = torch_generator(derive_seed(self.seed, Purpose.ORDER, epoch))
        order = torch.randperm(self.num_samples, generator=generator)
        return [part.tolist() for part in order.tensor_split(self.num_batches)]


class EpochBatches(Sampler[list[SampleKey]]):
    """Yields the batches of one epoch as keys ``(epoch, index)``, from any batch on."""

    def __init__(self, plan: BatchPlan) -> None:
        self.plan = plan
        self.epoch = 0
        self.first_batch = 0

    def start_at(self, epoch: int, first_batch: int = 0) -> None:
        """Set where the next iteration starts."""
        self.epoch, self.first_batch = epoch, first_batch

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for batch in self.plan.batches(self.epoch)[self.first_batch :]:
            yield [(self.epoch, index) for index in batch]

    def __len__(self) -> int:
        return self.plan.num_batches - self.first_batch


class InOrder(Sampler[list[SampleKey]]):
    """Yields all images once, in their order, for the validation."""

    def __init__(self, num_samples: int, batch_size: int) -> None:
        self.num_samples, self.batch_size = num_samples, batch_size

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for part in torch.arange(self.num_samples).split(self.batch_size):
            yield [(0, index) for index in part.tolist()]

    def __len__(self) -> int:
        return -(-self.num_samples // self.batch_size)
