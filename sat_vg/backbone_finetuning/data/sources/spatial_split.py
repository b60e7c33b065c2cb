"""Splits of images by where they lie or by a group, so that no image has neighbours or kin on the other side.

Images that lie side by side look alike whatever their class. Split one by one, a model that knows the neighbours of
an image passes for one that knows its class (Roberts et al., 2017, *Cross-validation strategies for data with
temporal, spatial, hierarchical, or phylogenetic structure*).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sat_vg.backbone_finetuning.data.reading.gdal import has_rasterio
from sat_vg.backbone_finetuning.data.reading.threads import run_in_order
from sat_vg.backbone_finetuning.data.sources.source import ImageQuery
from sat_vg.backbone_finetuning.data.sources.splits import Split, Splits
from sat_vg.backbone_finetuning.data.windows.paths import WindowPath
from sat_vg.backbone_finetuning.data.windows.places import Footprint, boxes_in_metres, footprint_of
from sat_vg.backbone_finetuning.utils.errors import ConfigError, DataError
from sat_vg.backbone_finetuning.utils.printable import counted
from sat_vg.backbone_finetuning.utils.seeding import Purpose, derive_seed, numpy_generator

TRAIN, VAL, TEST, LEFT_OUT = 0, 1, 2, 3
_CANDIDATES = 200
_MOST_CENTRES = 4
_ENDINGS = (".tif", ".tiff", ".jp2")  # of images that may have coordinates
_MOST_PAIRS = 2**18  # of boxes that are compared at a time

Numbers = NDArray[np.float64]
Places = NDArray[np.intp]


def split_blocks(
    boxes: Numbers, labels: Sequence[int], block: float, shares: tuple[float, float], seed: int
) -> Places:
    """Assign images to train, val and test such that those of different parts are a block apart at least.

    The area is laid out in square blocks. Val and test are compact clusters of blocks; of many that are drawn, the
    one that leaves each part the most classes is taken, and of these the one that leaves the most images to train.

    Args:
        boxes: ``[N, 4]`` (left, bottom, right, top), in metres.
        labels: class of each image.
        block: side of a block, and the least distance between images of different parts, in metres.
        shares: of val and test, in [0, 1).
        seed: of the draw, which depends on nothing else but the arguments.

    Returns:
        ``[N]`` of ``TRAIN``, ``VAL``, ``TEST``, and ``LEFT_OUT`` for what lies too near to another part.

    Raises:
        DataError: nothing is left of a part.
    """
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    corner = middles.min(axis=0)
    blocks, block_of = np.unique(np.floor((middles - corner) / block).astype(np.int64), axis=0, return_inverse=True)
    block_of = block_of.reshape(-1)
    counts = np.zeros((len(blocks), max(labels) + 1), np.int64)
    np.add.at(counts, (block_of, np.asarray(labels)), 1)
    around = _blocks_around(blocks)
    drawn = (_drawn_parts(blocks, around, counts, shares, seed, number) for number in range(_CANDIDATES))
    parts = min(drawn, key=lambda parts: _lost(parts, counts, shares))
    found = parts[block_of]
    # Images reach beyond their blocks, so what is near is found by the images themselves.
    _leave_out_near(found, boxes, (VAL,), (TEST,), block)
    _leave_out_near(found, boxes, (TRAIN,), (VAL, TEST), block)
    wanted = [(TRAIN, "train"), *([(VAL, "val")] if shares[0] else []), *([(TEST, "test")] if shares[1] else [])]
    for part, name in wanted:
        if not (found == part).any():
            wide, high = np.ptp(middles, axis=0)
            raise DataError(
                f"blocks of {block:g} leave nothing for {name}: the images lie within {wide:,.0f} x {high:,.0f}, and "
                f"train, val and test are to be a block apart; use smaller blocks, such as {max(wide, high) / 12:.3g}"
            )
    return found


def _blocks_around(blocks: NDArray[np.int64]) -> Places:
    """The places of the blocks beside each one and of itself ``[9, N]``; its own too where one of these is empty."""
    place_of = {block: place for place, block in enumerate(map(tuple, blocks.tolist()))}
    return np.array(
        [
            [place_of.get((x + i, y + j), place) for (x, y), place in place_of.items()]
            for i in (-1, 0, 1)
            for j in (-1, 0, 1)
        ]
    )


def _drawn_parts(
    blocks: NDArray[np.int64],
    around: Places,
    counts: NDArray[np.int64],
    shares: tuple[float, float],
    seed: int,
    number: int,
) -> Places:
    """A part for each block: clusters around a few random blocks, and what lies beside them left out."""
    rng = numpy_generator(derive_seed(seed, Purpose.SPLIT, number))
    sizes = counts.sum(axis=1)
    parts = np.full(len(blocks), TRAIN)
    for part, share in ((TEST, shares[1]), (VAL, shares[0])):
        free = np.flatnonzero(parts == TRAIN)
        if not share or not len(free):
            continue
        centres = blocks[rng.choice(free, min(len(free), int(rng.integers(1, _MOST_CENTRES + 1))), replace=False)]
        aspect = np.exp(rng.uniform(-1, 1))
        away = np.abs(blocks[free][:, None] - centres) * (aspect, 1 / aspect)
        order = free[np.argsort(away.max(axis=2).min(axis=1), kind="stable")]
        enough = int(np.searchsorted(np.cumsum(sizes[order]), share * sizes.sum())) + 1
        chosen = order[: min(enough, max(1, len(order) - 1))]
        parts[chosen] = part
        beside = around[:, chosen]
        parts[beside[parts[beside] == TRAIN]] = LEFT_OUT
    return parts


def _lost(parts: Places, counts: NDArray[np.int64], shares: tuple[float, float]) -> tuple[int, int, float]:
    """How much a candidate loses: classes of train, classes of val and test, images of train."""
    held = {part: counts[parts == part].sum(axis=0) for part in (TRAIN, VAL, TEST)}
    lacking = [int((held[part] == 0).sum()) for part, share in ((VAL, shares[0]), (TEST, shares[1])) if share]
    return int((held[TRAIN] == 0).sum()), sum(lacking), -float(held[TRAIN].sum())


def _leave_out_near(
    found: Places, boxes: Numbers, mine: tuple[int, ...], others: tuple[int, ...], reach: float
) -> None:
    """Leave out images of some parts that are nearer than ``reach`` to images of others."""
    own, theirs = np.flatnonzero(np.isin(found, mine)), np.flatnonzero(np.isin(found, others))
    for first, second in near_pairs(boxes[own], boxes[theirs], reach):
        distance = np.hypot(*_gaps(boxes[own[first]], boxes[theirs[second]]).T)
        found[own[first[distance < reach * (1 - 1e-9)]]] = LEFT_OUT


def near_pairs(first: Numbers, second: Numbers, reach: float) -> Iterator[tuple[Places, Places]]:
    """Pairs of boxes of two lists, as places in them, in parts; among them all that are at most ``reach`` apart."""
    if not len(first) or not len(second):
        return
    side = reach + float(max((boxes[:, 2:] - boxes[:, :2]).max() for boxes in (first, second)))
    side = side or 1.0
    groups, cells = _by_cell(first, side), _by_cell(second, side)
    for (x, y), own in groups.items():
        around = [cells.get((x + i, y + j), []) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        theirs = np.array([place for cell in around for place in cell], np.intp)
        at_a_time = max(1, _MOST_PAIRS // max(1, len(theirs)))
        for start in range(0, len(own) if len(theirs) else 0, at_a_time):
            some = np.array(own[start : start + at_a_time], np.intp)
            yield np.repeat(some, len(theirs)), np.tile(theirs, len(some))


def _by_cell(boxes: Numbers, side: float) -> dict[tuple[int, int], list[int]]:
    cells: dict[tuple[int, int], list[int]] = {}
    for place, (x, y) in enumerate(np.floor(boxes[:, :2] / side).astype(np.int64).tolist()):
        cells.setdefault((x, y), []).append(place)
    return cells


def _gaps(first: Numbers, second: Numbers) -> Numbers:
    """Distances along x and y between pairs of boxes ``[N, 2]``; 0 where they overlap or touch."""
    return np.maximum(0, np.maximum(first[:, :2] - second[:, 2:], second[:, :2] - first[:, 2:]))


def are_touching(first: Numbers, second: Numbers) -> NDArray[np.bool_]:
    """Of pairs of boxes whether they overlap or touch, to a thousandth of their size."""
    slack = 1e-3 * (first[:, 2:] - first[:, :2]).max(initial=0)
    return np.asarray((_gaps(first, second) <= slack).all(axis=1), bool)


def split_groups(groups: Sequence[str], labels: Sequence[int], share: float, seed: int) -> Places:
    """Assign images to train and val, each group of them (a scene, a flight, a region) as a whole.

    Of many random choices the one is taken that leaves both parts the most classes and is the nearest to ``share``,
    that of the images that become val, in (0, 1). Returns ``[N]`` of ``TRAIN`` and ``VAL``.

    Raises:
        DataError: there is one group alone.
    """
    names = sorted(set(groups))
    if len(names) < 2:
        raise DataError(
            f"all images are of one group, {names[0]!r}: there is nothing to split; name a column with at least two"
        )
    place = {name: index for index, name in enumerate(names)}
    group_of = np.array([place[name] for name in groups])
    counts = np.zeros((len(names), max(labels) + 1), np.int64)
    np.add.at(counts, (group_of, np.asarray(labels)), 1)
    best: tuple[tuple[int, int, float], Places] | None = None
    for number in range(_CANDIDATES):
        order = numpy_generator(derive_seed(seed, Purpose.SPLIT, number)).permutation(len(names))
        reached = np.cumsum(counts.sum(axis=1)[order]) / len(groups)
        enough = min(max(1, int(np.abs(reached - share).argmin()) + 1), len(names) - 1)
        val, train = counts[order[:enough]].sum(axis=0), counts[order[enough:]].sum(axis=0)
        lost = (int((train == 0).sum()), int((val == 0).sum()), float(abs(reached[enough - 1] - share)))
        if best is None or lost < best[0]:
            best = lost, order[:enough]
    assert best is not None
    return np.where(np.isin(group_of, best[1]), VAL, TRAIN)


def in_blocks(splits: Splits, query: ImageQuery) -> Splits:
    """The splits, whose val was drawn by seed, with val drawn by blocks of ground, a block away from train.

    Raises:
        ConfigError: val is given, or rasterio is not installed.
        DataError: images have no coordinates, or nothing is left of train or val.
    """
    block = query.block_size
    assert block is not None

    def draw(both: Split) -> tuple[Places, str]:
        found = list(run_in_order(both.paths, footprint_of))
        missing = [path for path, each in zip(both.paths, found, strict=True) if each is None]
        if missing:
            raise DataError(
                f"split = 'spatial': {len(missing)} of {len(found)} images have no coordinates (the first: "
                f"{missing[0]!r}); give GeoTIFFs with a CRS, or a table with --group_column"
            )
        boxes = boxes_in_metres([each for each in found if each is not None])
        parts = split_blocks(boxes, both.labels, block, (query.val_fraction, 0.0), query.seed)
        return parts, f"in blocks of {block:g} m by seed {query.seed}"

    return _drawn_anew(splits, "split = 'spatial'", draw)


def by_groups(splits: Splits, groups: Mapping[str, str], query: ImageQuery) -> Splits:
    """The splits, whose val was drawn by seed, with val drawn by groups of paths, each of them on one side.

    Raises:
        ConfigError: val is given.
        DataError: there is one group alone, or train lacks a class.
    """

    def draw(both: Split) -> tuple[Places, str]:
        names = [groups[path] for path in both.paths]
        parts = split_groups(names, both.labels, query.val_fraction, query.seed)
        return parts, f"by {query.group_column!r}, {len(set(names))} groups, by seed {query.seed}"

    return _drawn_anew(splits, f"group_column = {query.group_column!r}", draw)


def _drawn_anew(splits: Splits, setting: str, draw: Callable[[Split], tuple[Places, str]]) -> Splits:
    """The splits with train and val, by class and path, as ``draw`` divides them and describes that."""
    if not splits.val_is_drawn:
        raise ConfigError(f"{setting}: the data say what is val already; leave it out, or give all images as train")
    paths, labels = splits.train.paths + splits.val.paths, splits.train.labels + splits.val.labels
    order = sorted(range(len(paths)), key=lambda place: (labels[place], paths[place]))
    both = replace(splits.train, paths=paths, labels=labels).take(order)
    parts, how = draw(both)
    train, val = (
        both.take(np.flatnonzero(parts == part).tolist(), name) for part, name in ((TRAIN, "train"), (VAL, "val"))
    )
    lacking = [name for name, count in zip(both.class_names, train.class_counts(), strict=True) if not count]
    if lacking:
        raise DataError(
            f"val drawn {how} leaves train without an image of {lacking[0]!r}: it lies in one place alone; "
            "use smaller blocks or groups, or another --seed"
        )
    left_out = int((parts == LEFT_OUT).sum())
    near = f", {left_out} between them left out" if left_out else ""
    # As given, so that copies on both sides are an error: moving them would bring neighbours together.
    return replace(splits, train=train, val=val, how=f"{splits.how}; val {how}{near}", val_is_drawn=False)


def describe_neighbours(splits: Splits) -> list[str]:
    """A line where images with coordinates overlap or touch images of another split; none without coordinates."""
    paths = [
        path
        for split in splits.parts
        for path in split.paths
        if isinstance(path, WindowPath) or (path.lower().endswith(_ENDINGS) and has_rasterio())
    ]
    if not paths:
        return []
    found = list(run_in_order(paths, footprint_of))
    placed = {path: each for path, each in zip(paths, found, strict=True) if each is not None}
    lines = []
    for held in splits.parts[1:]:
        mine = [path for path in held.paths if path in placed]
        theirs = [path for path in splits.train.paths if path in placed]
        touching = _touching(mine, theirs, placed)
        if touching:
            pairs = counted(len(touching), "image")
            one, other = next(iter(touching.items()))
            lines.append(
                f"{pairs} of {held.name} ({100 * len(touching) / len(held):.0f} %) overlap or touch images of "
                f"train on the ground, such as {one!r} and {other!r}: neighbours look alike, so the accuracy "
                "flatters; split by --split spatial --block_size METRES, or by --group_column"
            )
    return lines


def _touching(mine: list[str], theirs: list[str], placed: dict[str, Footprint]) -> dict[str, str]:
    """Images that overlap or touch one of the others, each with the first of these."""
    if not mine or not theirs:
        return {}
    try:
        boxes = boxes_in_metres([placed[path] for path in (*mine, *theirs)])
    except DataError:  # some in pixels and some in a CRS
        return {}
    first, second = boxes[: len(mine)], boxes[len(mine) :]
    found: dict[str, str] = {}
    for own, others in near_pairs(first, second, 0.0):
        touch = np.flatnonzero(are_touching(first[own], second[others]))
        for place in touch.tolist():
            found.setdefault(mine[int(own[place])], theirs[int(others[place])])
    return found
