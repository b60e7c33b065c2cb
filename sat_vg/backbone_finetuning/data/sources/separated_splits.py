"""Train and val drawn anew so that what belongs together stays together: blocks of ground, or groups of a table."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from sat_vg.backbone_finetuning.data.reading.threads import run_in_order
from sat_vg.backbone_finetuning.data.sources.source import ImageQuery
from sat_vg.backbone_finetuning.data.sources.spatial_split import (
    LEFT_OUT,
    TRAIN,
    VAL,
    Places,
    split_blocks,
    split_groups,
)
from sat_vg.backbone_finetuning.data.sources.splits import Split, Splits
from sat_vg.backbone_finetuning.data.windows.places import Footprint, boxes_in_metres, footprint_of
from sat_vg.backbone_finetuning.utils.errors import ConfigError, DataError


def in_blocks(splits: Splits, query: ImageQuery) -> Splits:
    """The splits with val drawn by blocks of ground, a block away from train.

    Args:
        splits: with val drawn by seed.
        query: with the side of a block in metres.

    Raises:
        ConfigError: val is given, or rasterio is not installed.
        DataError: images have no coordinates, or nothing is left of train or val.
    """
    assert query.block_size is not None
    _require_drawn(splits, "split = 'spatial'")
    both = _together(splits)
    boxes = boxes_in_metres(_footprints(both))
    parts = split_blocks(boxes, both.labels, query.block_size, (query.val_fraction, 0.0), query.seed)
    return _drawn_anew(splits, both, parts, f"in blocks of {query.block_size:g} m by seed {query.seed}")


def by_groups(splits: Splits, groups: Mapping[str, str], query: ImageQuery) -> Splits:
    """The splits with val drawn by groups, each of them on one side.

    Args:
        splits: with val drawn by seed.
        groups: of each image, by path.
        query: with the column that names them.

    Raises:
        ConfigError: val is given.
        DataError: there is one group alone, or train lacks a class.
    """
    _require_drawn(splits, f"group_column = {query.group_column!r}")
    both = _together(splits)
    names = [groups[path] for path in both.paths]
    parts = split_groups(names, both.labels, query.val_fraction, query.seed)
    return _drawn_anew(
        splits, both, parts, f"by {query.group_column!r}, {len(set(names))} groups, by seed {query.seed}"
    )


def _require_drawn(splits: Splits, setting: str) -> None:
    if not splits.val_is_drawn:
        raise ConfigError(f"{setting}: the data say what is val already; leave it out, or give all images as train")


def _together(splits: Splits) -> Split:
    """Train and val as one, by class and path."""
    paths, labels = splits.train.paths + splits.val.paths, splits.train.labels + splits.val.labels
    order = sorted(range(len(paths)), key=lambda place: (labels[place], paths[place]))
    return replace(splits.train, paths=paths, labels=labels).take(order)


def _footprints(both: Split) -> list[Footprint]:
    found = list(run_in_order(both.paths, footprint_of))
    missing = [path for path, each in zip(both.paths, found, strict=True) if each is None]
    if missing:
        raise DataError(
            f"split = 'spatial': {len(missing)} of {len(found)} images have no coordinates (the first: "
            f"{missing[0]!r}); "
            "give GeoTIFFs with a CRS, or a table with --group_column"
        )
    return [each for each in found if each is not None]


def _drawn_anew(splits: Splits, both: Split, parts: Places, how: str) -> Splits:
    train, val = (
        both.take(np.flatnonzero(parts == part).tolist(), name) for part, name in ((TRAIN, "train"), (VAL, "val"))
    )
    counts = train.class_counts()
    lacking = [name for name, count in zip(both.class_names, counts, strict=True) if not count]
    if lacking:
        raise DataError(
            f"val drawn {how} leaves train without an image of {lacking[0]!r}: it lies in one place alone; "
            "use smaller "
            "blocks or groups, or another --seed"
        )
    left_out = int((parts == LEFT_OUT).sum())
    near = f", {left_out} between them left out" if left_out else ""
    # As given, so that copies on both sides are an error: moving them would bring neighbours together.
    return replace(splits, train=train, val=val, how=f"{splits.how}; val {how}{near}", val_is_drawn=False)
