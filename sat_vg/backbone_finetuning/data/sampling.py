"""Which images form which batch: a pure function of seed and epoch, so a run can go on at any step."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch.utils.data import Sampler

from sat_vg.backbone_finetuning.utils.seeding import Purpose, derive_seed, torch_generator

SampleKey = tuple[int, int]  # (view, index of the image); every view is augmented in another way
PartKey = tuple["Part", int, int]  # the same within a part


class Part(IntEnum):
    """Which images a pass is over, and how they are transformed."""

    TRAINING = 0
    VALIDATION = 1
    PLAIN_TRAINING = 2  # the training images without augmentation


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


class RunningPass(Sampler[list[PartKey]]):
    """Yields the batches of the pass that was begun last, as keys ``(part, view, index)``."""

    def __init__(self) -> None:
        self.begin(Part.TRAINING, 0, [])

    def begin(self, part: Part, view: int, batches: Sequence[Sequence[int]]) -> None:
        """Set what the next iteration yields: batches of indices of one part, in one view."""
        self._part, self._view, self._batches = part, view, batches

    def __iter__(self) -> Iterator[list[PartKey]]:
        for batch in self._batches:
            yield [(self._part, self._view, index) for index in batch]

    def __len__(self) -> int:
        return len(self._batches)


class InOrder(Sampler[list[SampleKey]]):
    """Yields all images once, in their order, for the validation."""

    def __init__(self, num_samples: int, batch_size: int) -> None:
        self.num_samples, self.batch_size = num_samples, batch_size

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for part in torch.arange(self.num_samples).split(self.batch_size):
            yield [(0, index) for index in part.tolist()]

    def __len__(self) -> int:
        return -(-self.num_samples // self.batch_size)
