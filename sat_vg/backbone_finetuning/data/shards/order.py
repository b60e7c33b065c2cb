"""The order of a run that fetches its shards: it needs few of them at a time, and every image once an epoch."""

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from sat_vg.backbone_finetuning.data.shards.paths import ShardPath
from sat_vg.backbone_finetuning.data.sources.splits import Split


@dataclass(frozen=True, eq=False)
class ShardWindows:
    """Shards in random order; of so many at a time the images are shuffled.

    Two images of one shard are never further apart than a window is long, so a shard is fetched once an epoch where
    the disk holds a window and a shard more. How well an epoch is mixed depends on the window, and on how the shards
    were filled: ``sat-vg shard`` shuffles all images into them.

    Attributes:
        members: of each shard the indices of its images, int64.
        window: shards at a time.
    """

    members: tuple[Tensor, ...]
    window: int

    @classmethod
    def of(cls, split: Split, window: int) -> "ShardWindows":
        """Of a split whose images lie in shards."""
        places: dict[str, list[int]] = defaultdict(list)
        for index, path in enumerate(split.paths):
            assert isinstance(path, ShardPath), path
            places[path.shard.name].append(index)
        return cls(tuple(torch.tensor(places[name]) for name in sorted(places)), window)

    def __call__(self, count: int, generator: torch.Generator) -> Tensor:
        """Indices of all images, each once."""
        assert count == sum(map(len, self.members)), count
        groups = torch.randperm(len(self.members), generator=generator).split(self.window)
        together = (torch.cat([self.members[place] for place in group.tolist()]) for group in groups)
        return torch.cat([few[torch.randperm(len(few), generator=generator)] for few in together])
