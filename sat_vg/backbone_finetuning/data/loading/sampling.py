"""Which images form which batch: a pure function of seed and epoch, so a run can go on at any step."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor
from torch.utils.data import Sampler

from sat_vg.backbone_finetuning.configs.choices import Sampler as SamplerName
from sat_vg.backbone_finetuning.data.sources.splits import Split
from sat_vg.backbone_finetuning.utils.ranks import WHOLE, Share
from sat_vg.backbone_finetuning.utils.seeding import Purpose, derive_seed, torch_generator

SampleKey = tuple[int, int]  # (view, index of the image); every view is augmented in another way
PartKey = tuple["Part", int, int]  # the same within a part


class Part(IntEnum):
    """Which images a pass is over, and how they are transformed."""

    TRAINING = 0
    VALIDATION = 1
    PLAIN_TRAINING = 2  # the training images without augmentation


# (images of an epoch, generator) → the index of each, int64 [images]
Order = Callable[[int, torch.Generator], Tensor]


def shuffled(count: int, generator: torch.Generator) -> Tensor:
    """Every image once."""
    return torch.randperm(count, generator=generator)


def weighted_draw(split: Split) -> Order:
    """Images drawn with replacement, rare classes as often as frequent ones; some come twice, some not at all.

    By the inverse size of an image's class; of several classes the rarest counts, none counts as one more.
    """
    sizes = split.class_counts()
    without = sum(not split.classes_of(label) for label in split.labels)
    of_label = {
        label: 1 / min((sizes[index] for index in split.classes_of(label)), default=without)
        for label in set(split.labels)
    }
    weights = torch.tensor([of_label[label] for label in split.labels], dtype=torch.float64)
    cumulated = (weights / weights.sum()).cumsum(0)

    def order(count: int, generator: torch.Generator) -> Tensor:
        drawn = torch.rand(count, dtype=torch.float64, generator=generator)
        return torch.searchsorted(cumulated, drawn).clamp_(max=len(cumulated) - 1)

    return order


def class_balanced(split: Split) -> Order:
    """Rounds in which every class comes once, in random order, so all batches hold about as many of each class.

    The images of a class take turns: none comes again before all others of its class have come. An image has one
    class; classes without images take no turns.
    """
    labels = torch.tensor(split.labels)
    places = (torch.nonzero(labels == label).flatten() for label in range(len(split.class_names)))
    members = [few for few in places if len(few)]

    def order(count: int, generator: torch.Generator) -> Tensor:
        rounds = -(-count // len(members))
        order = torch.rand(rounds, len(members), generator=generator).argsort(1)
        found = torch.empty_like(order)
        for place, few in enumerate(members):
            turns = [few[torch.randperm(len(few), generator=generator)] for _ in range(-(-rounds // len(few)))]
            found[order == place] = torch.cat(turns)[:rounds]
        return found.flatten()[:count]

    return order


SAMPLERS: dict[SamplerName, Callable[[Split], Order]] = {
    "uniform": lambda split: shuffled,
    "weighted": weighted_draw,
    "class_balanced": class_balanced,
}


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
    """

    num_samples: int  # images in the epoch
    batch_size: int  # the largest batch (with 2 and an odd number of images, one batch has 3)
    seed: int  # of the order
    order: Order = shuffled  # which images an epoch takes, one after another
    share: Share = WHOLE  # of every batch, that this process computes

    @property
    def num_batches(self) -> int:
        """Batches in an epoch."""
        return num_parts(self.num_samples, self.batch_size)

    @property
    def batch_sizes(self) -> tuple[int, int]:
        """The smallest and the largest batch."""
        return self.num_samples // self.num_batches, -(-self.num_samples // self.num_batches)

    @property
    def fewest_images(self) -> int:
        """The smallest part of a batch that any of the processes computes."""
        smallest = range(self.batch_sizes[0])
        return min(len(Share(rank, self.share.count).of_batch(smallest)) for rank in range(self.share.count))

    def batches(self, epoch: int) -> list[list[int]]:
        """The indices of every batch of ``epoch``, those of all processes."""
        generator = torch_generator(derive_seed(self.seed, Purpose.ORDER, epoch))
        order = self.order(self.num_samples, generator)
        return [part.tolist() for part in order.tensor_split(self.num_batches)]

    def own_batches(self, epoch: int) -> list[Sequence[int]]:
        """This process's share of every batch of ``epoch``."""
        return [self.share.of_batch(batch) for batch in self.batches(epoch)]


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
