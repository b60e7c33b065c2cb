"""The source of images in shards: the splits of their index, without opening an image.

The images come in the order of their names, which is that of the folders that ``sat-vg shard`` has read: a run over
shards equals the run over these folders. With a window they come in the order in which they lie in the shards, and a
pass over all of them fetches each shard once.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from sat_vg.backbone_finetuning.data.reading.decoded_cache import in_words
from sat_vg.backbone_finetuning.data.shards.cache import SOURCE, FetchedShards, LocalShards, ShardPath, store_of
from sat_vg.backbone_finetuning.data.shards.index import INDEX, PARTS, ShardIndex, read_index
from sat_vg.backbone_finetuning.data.sources.class_folders import is_image
from sat_vg.backbone_finetuning.data.sources.source import ImageQuery, Source
from sat_vg.backbone_finetuning.data.sources.splits import Split, Splits, describe_splits, split_off
from sat_vg.backbone_finetuning.utils.bounded_cache import BoundedCache
from sat_vg.backbone_finetuning.utils.cache_folder import cache_folder
from sat_vg.backbone_finetuning.utils.errors import ConfigError, DataError
from sat_vg.backbone_finetuning.utils.printable import counted, list_lines

_CACHE = "shards"  # in the cache folder
WRITING = ".writing.json"  # in a folder whose shards are not complete yet


class Shards(Source):
    """The source of images in tar files with an index."""

    def takes(self, query: ImageQuery) -> bool:
        """Whether the path is meant as that of shards. Raises DataError for unfinished ones, or no index."""
        return query.path is not None and _is_sharded(query.place)

    def load_splits(self, query: ImageQuery) -> Splits:
        """The images of ``shards.json``; paths are ``ShardPath``, below its folder wherever the shards lie.

        Raises UserError where index, shards, source or settings do not fit together, or there is too little room.
        """
        for name, usual in (("train_split", "train"), ("val_split", "val")):
            if getattr(query, name) != usual:
                raise ConfigError(
                    f"{name} = {getattr(query, name)!r}: has no effect on shards, whose index says what is train's "
                    "and val's; leave it out"
                )
        file = query.place / INDEX if query.place.is_dir() else query.place
        index = read_index(file)
        store = store_of(file.parent, shard_cache(query.cache_gib))
        how = f" ({counted(len(index.shards), 'shard')})"
        if isinstance(store, LocalShards):
            _require_shards(store, index)
        else:
            _require_room(store, index, query.shard_window)
            how = f"{how[:-1]}, fetched {store.kind})"
        train, val, test = (_split_of(file.parent, index, part, store) for part in PARTS)
        if not len(train):
            raise DataError(f"{str(file)!r} has no image of the split train; there is nothing to train on")
        is_drawn = not len(val)
        if is_drawn:
            if index.label_sets is not None:
                raise DataError(f"{str(file)!r} has no image of the split val; write the shards anew, with one")
            train = _as_they_lie(train) if query.shard_window else train
            train, val = split_off(train.by_class(), query.val_fraction, query.seed)
            how += ", val split off by seed"
        splits = replace(describe_splits(train, val, test if len(test) else None, how=how), val_is_drawn=is_drawn)
        return in_shard_order(splits) if query.shard_window else splits


SHARDS = Shards()


def shard_windows(split: Split, window: int) -> Callable[[int, torch.Generator], Tensor]:
    """The order of a run that fetches its shards: shards at random, the images of so many at a time shuffled.

    Two images of one shard are never further apart than a window is long, so a shard is fetched once an epoch where
    the disk holds a window and a shard more. How well an epoch is mixed depends on the window, and on how the shards
    were filled: ``sat-vg shard`` shuffles all images into them.
    """
    places: dict[str, list[int]] = defaultdict(list)
    for index, path in enumerate(split.paths):
        places[_place_of(path)[0]].append(index)
    members = [torch.tensor(places[name]) for name in sorted(places)]

    def order(count: int, generator: torch.Generator) -> Tensor:
        assert count == len(split), count
        groups = torch.randperm(len(members), generator=generator).split(window)
        together = (torch.cat([members[place] for place in group.tolist()]) for group in groups)
        return torch.cat([few[torch.randperm(len(few), generator=generator)] for few in together])

    return order


def shard_cache(cache_gib: float) -> BoundedCache:
    """The cache of fetched shards: not that of decoded images and features, as these come while shards go."""
    return BoundedCache(cache_folder() / _CACHE, int(cache_gib * 2**30))


def in_shard_order(splits: Splits) -> Splits:
    """The same splits with their images as they lie in the shards."""
    test = None if splits.test is None else _as_they_lie(splits.test)
    return replace(splits, train=_as_they_lie(splits.train), val=_as_they_lie(splits.val), test=test)


def _is_sharded(path: Path) -> bool:
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


def _split_of(folder: Path, index: ShardIndex, part: str, store: LocalShards | FetchedShards) -> Split:
    """The images of a split, in the order of their names."""
    found = []
    for shard, samples in index.of_part(part).items():
        around = f"{folder}/{shard.name}"
        found += [(one.name, ShardPath(f"{around}/{one.name}", store, shard, one), one.label) for one in samples]
    found.sort(key=lambda entry: entry[:2])
    paths, labels = tuple(path for _, path, _ in found), tuple(label for _, _, label in found)
    return Split(part, paths, labels, index.class_names, index.label_sets)


def _require_shards(store: LocalShards, index: ShardIndex) -> None:
    """Check that all shards are there and whole, by their sizes."""
    problems = [problem for shard in index.shards if (problem := store.why_not_whole(shard))]
    if problems:
        raise DataError(
            f"{len(problems)} of {len(index.shards)} shards in {str(store.folder)!r} cannot be used:\n"
            f"{list_lines(problems)}\nFetch or write them again; where they lie elsewhere, say where with the "
            f"environment variable {SOURCE}"
        )


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


def _as_they_lie(split: Split) -> Split:
    return split.take(sorted(range(len(split)), key=lambda index: _place_of(split.paths[index])))


def _place_of(path: str) -> tuple[str, int]:
    assert isinstance(path, ShardPath), path
    return path.shard.name, path.offset
