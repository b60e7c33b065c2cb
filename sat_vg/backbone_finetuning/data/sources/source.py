"""A source of images: how it is recognised, and what it gives to a training and to commands that run a model."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sat_vg.backbone_finetuning.configs.choices import Split
from sat_vg.backbone_finetuning.data.sources.class_names import SEPARATOR
from sat_vg.backbone_finetuning.data.sources.splits import Splits
from sat_vg.backbone_finetuning.utils.home_paths import expand_home
from sat_vg.backbone_finetuning.utils.printable import counted

_CACHE_GIB = 16.0  # as in the configuration


@dataclass(frozen=True, kw_only=True)
class ImageQuery:
    """The settings that say where images come from."""

    path: str | None = None  # a folder, file or glob; None: none was given
    dataset: str | None = None  # name of a data set that torchvision reads
    train_split: str = "train"  # name of the train folder, or what a table's column ``split`` calls train
    val_split: str = "val"  # the same of val
    val_fraction: float = 0.2  # share of each class that becomes val where the source gives none, in (0, 1)
    seed: int = 0  # of that split, which depends on nothing else but paths and classes
    split: Split = "random"  # how val is drawn where the source gives none: image by image, or by blocks of ground
    block_size: float | None = None  # side of such a block in metres
    group_column: str | None = None  # column of a table whose images stay together where val is drawn
    allow_outside: bool = False  # a list or table may name files outside its folder
    label_separator: str = SEPARATOR  # text between the classes of an image in a table's column ``labels``
    outside_flag: str = "--allow_outside"  # the flag that sets ``allow_outside``, for messages
    shard_window: int = 0  # shards whose images are shuffled together; 0: all
    cache_gib: float = _CACHE_GIB  # the most that the cache of fetched shards takes
    tell: Callable[[str], None] = lambda line: None  # called with lines for the user, as a download may take long

    @property
    def place(self) -> Path:
        """The path, which has to be given, with the home folder written out."""
        assert self.path is not None
        return expand_home(self.path)


@dataclass(frozen=True)
class ImageList:
    """Images in order, with their classes if these are known."""

    paths: tuple[str, ...]  # files to open: the folder as it was given, and what follows
    labels: tuple[str, ...] | None  # the class of each image by name; None: they are not labelled
    description: str  # one line for the terminal
    left_out: str = ""  # files that are no images, in words; begins with its punctuation, empty where there are none

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, sorted; none where the images are not labelled."""
        return tuple(sorted(set(self.labels or ())))


class Source:
    """One kind of place that images come from; ``table.SOURCES`` lists all."""

    def takes(self, query: ImageQuery) -> bool:
        """Whether the query means this source. Raises DataError where it is a broken one."""
        raise NotImplementedError

    def load_splits(self, query: ImageQuery) -> Splits:
        """Images and labels of train, val and, where there is one, test; none is opened.

        Raises:
            DataError: there are none, or their classes do not fit together.
        """
        raise NotImplementedError

    def list_images(self, query: ImageQuery) -> ImageList:
        """All images, with their labels if they have some; none is opened. Raises DataError where there are none."""
        splits = self.load_splits(query)
        paths = tuple(path for split in splits.parts for path in split.paths)
        labels = tuple(split.name_of(label) for split in splits.parts for label in split.labels)
        return ImageList(paths, labels, splits.description)


def describe_images(labels: tuple[str, ...] | None, number: int, how: str) -> str:
    """A line on so many images: their number, and where ``labels`` is given that of their classes and ``how``."""
    images = counted(number, "image")
    if labels is None:
        return f"{images}, not labelled{how}"
    return f"{images} in {counted(len(set(labels)), 'class', 'classes')}{how}"
