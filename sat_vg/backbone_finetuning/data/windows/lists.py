"""Lists of the windows of scenes, and where these lie, for files of features."""

from collections.abc import Sequence

import numpy as np

from sat_vg.backbone_finetuning.data.sources.source import ImageList
from sat_vg.backbone_finetuning.data.windows.opened import open_placed_scene, open_scene
from sat_vg.backbone_finetuning.data.windows.paths import WindowPath, grid_of, valid_shares
from sat_vg.backbone_finetuning.data.windows.places import corners_of
from sat_vg.backbone_finetuning.utils.errors import DataError
from sat_vg.backbone_finetuning.utils.printable import counted


def list_windows(scenes: Sequence[str], size: int, stride: int) -> ImageList:
    """The windows of scenes that have a value, scene by scene and row by row.

    Raises:
        DataError: a scene cannot be read, or they have no value.
        ConfigError: a scene is smaller than a window.
    """
    paths: list[WindowPath] = []
    total = 0
    for path in scenes:
        scene = open_placed_scene(path)
        windows = grid_of(scene, size, stride)
        shares = valid_shares(scene, windows)
        paths += [WindowPath(path, window) for window, share in zip(windows, shares, strict=True) if share > 0]
        total += len(windows)
    if not paths:
        raise DataError(f"the scene {scenes[0]!r} has no value: all its pixels are nodata or masked")
    left_out = f", {total - len(paths):,} without a value left out" if total > len(paths) else ""
    what = f"{counted(len(paths), 'window')} of {size} x {size} pixels of {counted(len(scenes), 'scene')}"
    return ImageList(tuple(paths), None, f"{what}, not labelled{left_out}")


def columns_of_windows(paths: Sequence[str]) -> dict[str, np.ndarray]:
    """``window`` ``[N, 4]`` (column, row, width, height) and ``centre`` ``[N, 2]`` (x, y); none of other images."""
    windows = [path for path in paths if isinstance(path, WindowPath)]
    if not windows or len(windows) < len(paths):
        return {}
    centres = [corners_of(open_scene(path.scene), path.window).mean(axis=0) for path in windows]
    return {"window": np.array([path.window for path in windows], np.int64), "centre": np.array(centres, np.float64)}


def systems_of(paths: Sequence[str]) -> dict[str, str | None]:
    """The CRS of each scene whose windows are among some images, as text; None: pixels."""
    scenes = dict.fromkeys(path.scene for path in paths if isinstance(path, WindowPath))
    systems = {path: open_scene(path).crs for path in scenes}
    return {path: None if crs is None else str(crs) for path, crs in systems.items()}
