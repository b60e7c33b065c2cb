"""Images of train and of val or test that lie beside each other on the ground, or on top of one another."""

import numpy as np

from sat_vg.backbone_finetuning.data.reading.gdal import has_rasterio
from sat_vg.backbone_finetuning.data.reading.threads import run_in_order
from sat_vg.backbone_finetuning.data.sources.spatial_split import are_touching, near_pairs
from sat_vg.backbone_finetuning.data.sources.splits import Splits
from sat_vg.backbone_finetuning.data.windows.paths import WindowPath
from sat_vg.backbone_finetuning.data.windows.places import Footprint, boxes_in_metres, footprint_of
from sat_vg.backbone_finetuning.utils.errors import DataError
from sat_vg.backbone_finetuning.utils.printable import counted

_ENDINGS = (".tif", ".tiff", ".jp2")


def describe_neighbours(splits: Splits) -> list[str]:
    """A line where images with coordinates overlap or touch images of another split; none without coordinates."""
    has_places = has_rasterio()
    paths = [
        path
        for split in splits.parts
        for path in split.paths
        if isinstance(path, WindowPath) or (has_places and path.lower().endswith(_ENDINGS))
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
