"""Training from shards: the splits that an index of tar files gives, without opening an image.

The images come in the order of their names, which is that of the folders that ``sat-vg shard`` has read: a run over
shards is then the very run over these folders. Only where shards come and go (a window is set) do they come in the
order in which they lie in the shards, so that whoever reads all of them needs each shard once.
"""

import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from sat_vg.backbone_finetuning.data.reading.decoded_cache import in_words
from sat_vg.backbone_finetuning.data.shards.cache import SOURCE, FetchedShards, LocalShards, store_of
from sat_vg.backbone_finetuning.data.shards.index import INDEX, ListedShard, ShardIndex, read_index
from sat_vg.backbone_finetuning.data.shards.paths import Shard, ShardPath
from sat_vg.backbone_finetuning.data.sources.image_files import is_image
from sat_vg.backbone_finetuning.data.sources.source import ImageList, ImageQuery, list_splits
from sat_vg.backbone_finetuning.data.sources.splits import Split, Splits, describe_splits, split_off
from sat_vg.backbone_finetuning.utils.bounded_cache import BoundedCache
from sat_vg.backbone_finetuning.utils.cache_folder import cache_folder
from sat_vg.backbone_finetuning.utils.errors import ConfigError, DataError

_CACHE = "shards"  # in the cache folder
WRITING = ".writing.json"  # in a folder whose shards are not complete yet
_LISTED = 10

T = TypeVar("T")


@dataclass(frozen=True)
class ShardSettings:
    """How shards are read.

    Attributes:
        cache: where fetched ones are kept.
        window: shards whose images are shuffled together; 0: all.
        val_fraction: share of each class that becomes val where no shard is val's, in (0, 1).
        seed: of that split.
    """

    cache: BoundedCache
    window: int = 0
    val_fraction: float = 0.2
    seed: int = 0


def is_sharded(path: Path) -> bool:
    """Whether a path is meant as that of shards.

    Raises:
        DataError: it is a folder of shards whose writing has not ended, or of tar files that nobody knows.
    """
    try:
        if not path.is_dir():
            return path.name == INDEX
        if (path / INDEX).is_file():
            return True
        is_unfinished = (path / WRITING).is_file()
        holds_archives = any(path.glob("*.tar")) and not any(
            entry.is_dir() or is_image(entry.name) for entry in path.iterdir()
        )
    except OSError:  # a name that is too long, or a folder that must not be entered: listing it says so
        return False
    if is_unfinished:
        raise DataError(
            f"{str(path)!r} holds shards whose writing has not ended; run the same sat-vg shard command again, which "
            "goes on where it was"
        )
    if holds_archives:
        raise DataError(
            f"{str(path)!r} holds tar files without {INDEX}. If they are WebDataset shards, make it: sat-vg shard "
            "--index DIR. Else unpack them"
        )
    return False


class Shards:
    """The source of images in tar files with an index."""

    def takes(self, query: ImageQuery) -> bool:
        """See ``is_sharded``."""
        return query.path is not None and is_sharded(query.place)

    def load_splits(self, query: ImageQuery) -> Splits:
        """See ``load_shards``."""
        for name, value, usual in (
            ("train_split", query.train_split, "train"),
            ("val_split", query.val_split, "val"),
        ):
            if value != usual:
                raise ConfigError(
                    f"{name} = {value!r}: has no effect on shards, whose index says what is train's and val's; leave "
                    "it out"
                )
        cache = shard_cache(query.cache_gib)
        return load_shards(query.place, ShardSettings(cache, query.shard_window, query.val_fraction, query.seed))

    def list_images(self, query: ImageQuery) -> ImageList:
        """See ``Source``."""
        return list_splits(self.load_splits(query))


SHARDS = Shards()


def shard_cache(cache_gib: float) -> BoundedCache:
    """The cache of fetched shards: not that of decoded images and features, as these come while shards go."""
    return BoundedCache(cache_folder() / _CACHE, int(cache_gib * 2**30))


def load_shards(path: Path, settings: ShardSettings) -> Splits:
    """List the images of shards.

    Args:
        path: the folder of ``shards.json``, or that file.
        settings: how they are read.

    Returns:
        The splits; paths are ``ShardPath``, below the folder of the index wherever the shards lie.

    Raises:
        DataError: index or shards are missing, damaged or do not fit together.
        ConfigError: the source is none, or there is too little room for what is fetched.
    """
    file = path / INDEX if path.is_dir() else path
    index = read_index(file)
    store = store_of(file.parent, settings.cache)
    if isinstance(store, LocalShards):
        require_shards(store, index)
    else:
        _require_room(store, index, settings.window)
    where = "" if isinstance(store, LocalShards) else f", fetched {store.kind}"
    how = f" ({len(index.shards)} shard{'' if len(index.shards) == 1 else 's'}{where})"
    parts = {
        part: split_of(file.parent, index, part, store, settings.window > 0) for part in ("train", "val", "test")
    }
    train, val, test = parts["train"], parts["val"], parts["test"]
    if not len(train):
        raise DataError(f"{str(file)!r} has no image of the split train; there is nothing to train on")
    if len(val):
        return describe_splits(train, val, test if len(test) else None, how=how)
    if index.label_sets is not None:
        raise DataError(f"{str(file)!r} has no image of the split val; write the shards anew, with one")
    train, val = _draw(train, settings)
    drawn = describe_splits(train, val, test if len(test) else None, how=f"{how}, val split off by seed")
    return replace(drawn, val_is_drawn=True)


def split_of(
    folder: Path, index: ShardIndex, part: str, store: LocalShards | FetchedShards, as_they_lie: bool
) -> Split:
    """The images of a split, in the order of their names, or as they lie in the shards."""
    found: list[tuple[str, ShardPath, int]] = []
    for listed in index.of_part(part):
        shard = _as_shard(listed, store)
        found += [(one.name, ShardPath(f"{folder}/{shard.name}/{one.name}", shard, *one[2:]), one.label)
                  for one in listed.samples]  # fmt: skip
    if not as_they_lie:
        found.sort(key=lambda entry: entry[:2])
    paths, labels = tuple(path for _, path, _ in found), tuple(label for _, _, label in found)
    return Split(part, paths, labels, index.class_names, index.label_sets)


def in_shard_order(splits: Splits) -> Splits:
    """The same splits, train and val with their images as they lie in the shards."""
    return replace(splits, train=_as_they_lie(splits.train), val=_as_they_lie(splits.val))


def require_shards(store: LocalShards, index: ShardIndex) -> None:
    """Look whether all shards are there and whole, by their sizes.

    Raises:
        DataError: some are not; names them.
    """
    problems = [problem for shard in index.shards if (problem := _why_not_whole(store, _as_shard(shard, store)))]
    if problems:
        more = f"\n  and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        listed = "\n".join(f"  {problem}" for problem in problems[:_LISTED])
        raise DataError(
            f"{len(problems)} of {len(index.shards)} shards in {str(store.folder)!r} cannot be used:\n{listed}{more}"
            f"\nFetch or write them again; where they lie elsewhere, say where with the environment variable {SOURCE}"
        )


def _why_not_whole(store: LocalShards, shard: Shard) -> str | None:
    try:
        status = store.path_of(shard).stat()
    except OSError as error:
        return f"shard {shard.name!r} cannot be opened ({error.strerror})"
    if not stat.S_ISREG(status.st_mode):
        return f"shard {shard.name!r} is no file"
    if status.st_size != shard.num_bytes:
        return f"shard {shard.name!r} has {status.st_size} bytes, its index says {shard.num_bytes}"
    return None


def _require_room(store: FetchedShards, index: ShardIndex, window: int) -> None:
    """Refuse a window that the cache cannot hold: every image would fetch a shard."""
    sizes = sorted((shard.num_bytes for shard in index.shards), reverse=True)
    needed = sum(sizes) if not window else sum(sizes[: window + 1])
    room = store.cache.max_bytes
    if needed <= room:
        return
    fits = next((count for count in range(len(sizes)) if sum(sizes[: count + 2]) > room), 0)
    enough = (100 * needed // 2**30 + 1) / 100
    what = f"a window of {window} shards, and one more, take" if window else "the shards take"
    smaller = f"shuffle fewer at a time with --shard_window {fits}, or " if fits else ""
    raise ConfigError(
        f"{what} {in_words(needed)}, and cache_gib lets {in_words(room)} of them be kept: every epoch would fetch "
        f"them over and over; {smaller}allow --cache_gib {enough:g}"
    )


def _as_shard(shard: ListedShard, store: LocalShards | FetchedShards) -> Shard:
    return Shard(shard.name, shard.num_bytes, shard.sha256, store)


def _draw(train: Split, settings: ShardSettings) -> tuple[Split, Split]:
    """Val split off train, class by class."""
    classes: dict[str, list[str]] = {name: [] for name in train.class_names}
    for path, label in zip(train.paths, train.labels, strict=True):
        classes[train.class_names[label]].append(path)
    drawn = split_off(classes, settings.val_fraction, settings.seed)
    train, val = (_as_they_lie(split) if settings.window else split for split in drawn)
    return train, val


def _as_they_lie(split: Split) -> Split:
    order = sorted(range(len(split)), key=lambda index: _place_of(split.paths[index]))
    return replace(split, paths=_taken(split.paths, order), labels=_taken(split.labels, order))


def _place_of(path: str) -> tuple[str, int]:
    assert isinstance(path, ShardPath), path
    return path.shard.name, path.offset


def _taken(values: Sequence[T], order: list[int]) -> tuple[T, ...]:
    return tuple(values[index] for index in order)
