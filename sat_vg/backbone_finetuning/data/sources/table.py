"""All sources of images, for every command that takes images: a new source is a class and its line here."""

from sat_vg.backbone_finetuning.data.shards.source import SHARDS
from sat_vg.backbone_finetuning.data.sources.folders import FOLDERS
from sat_vg.backbone_finetuning.data.sources.named_datasets import NAMED_DATASETS
from sat_vg.backbone_finetuning.data.sources.scenes import SCENES
from sat_vg.backbone_finetuning.data.sources.source import ImageList, ImageQuery, Source
from sat_vg.backbone_finetuning.data.sources.spatial_split import in_blocks
from sat_vg.backbone_finetuning.data.sources.splits import Splits
from sat_vg.backbone_finetuning.data.sources.tables import TABLES
from sat_vg.backbone_finetuning.utils.errors import ConfigError, DataError

# The first one that takes a query is asked.
SOURCES: tuple[Source, ...] = (NAMED_DATASETS, SCENES, SHARDS, TABLES, FOLDERS)


def load_splits(query: ImageQuery) -> Splits:
    """Images and labels of train, val and, where there is one, test; none of them is opened.

    Raises:
        DataError: there are none, or their classes do not fit together.
        ConfigError: a setting is for shards and there are none, or the other way round.
    """
    if query.train_split == query.val_split:
        raise ConfigError(
            f"train_split and val_split are both {query.train_split!r}; name two, or leave val_split out"
        )
    source = _source_of(query)
    if query.shard_window and source is not SHARDS:
        raise ConfigError(
            f"shard_window = {query.shard_window}: dataset_path = {query.path!r} holds no shards; leave it out"
        )
    if query.group_column is not None and source is not TABLES:
        raise ConfigError(
            f"group_column = {query.group_column!r}: dataset_path = {query.path!r} is no table; leave it out"
        )
    splits = source.load_splits(query)
    return in_blocks(splits, query) if query.split == "spatial" else splits


def list_images(query: ImageQuery) -> ImageList:
    """The images that a model is run over, with their labels if they have some; none of them is opened.

    Raises:
        DataError: there are none, or a list that cannot be read or names what it may not.
    """
    if query.path == "":  # which would be the current folder
        raise DataError("the path of the images is empty; name a folder, a file, a glob or a table")
    return _source_of(query).list_images(query)


def _source_of(query: ImageQuery) -> Source:
    return next(source for source in SOURCES if source.takes(query))
