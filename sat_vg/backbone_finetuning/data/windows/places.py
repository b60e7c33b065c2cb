"""Where images lie on the ground: boxes in metres, of GeoTIFFs and of windows of scenes."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sat_vg.backbone_finetuning.data.reading.files import read_file
from sat_vg.backbone_finetuning.data.reading.gdal import require_rasterio, with_gdal
from sat_vg.backbone_finetuning.data.sources.source import ImageList
from sat_vg.backbone_finetuning.data.windows.opened import open_placed_scene, open_scene
from sat_vg.backbone_finetuning.data.windows.paths import WindowPath, grid_of, valid_shares
from sat_vg.backbone_finetuning.data.windows.scene import Scene, Window
from sat_vg.backbone_finetuning.utils.errors import DataError
from sat_vg.backbone_finetuning.utils.printable import counted
from sat_vg.backbone_finetuning.utils.unreadable import Unreadable

_METRES_OF_A_DEGREE = 110_574.0  # of latitude at the equator, the shortest there is
_LONGITUDES = "EPSG:4326"  # in rasterio always longitude, latitude


class Footprint(NamedTuple):
    """The corners ``[4, 2]`` of an image, and the CRS that they are in; None: pixels of a picture."""

    crs: Any
    corners: NDArray[np.float64]


def corners_of(scene: Scene, window: Window) -> NDArray[np.float64]:
    """Coordinates ``[4, 2]`` of a window's corners, around it."""
    column, row, width, height = window
    around = [(column, row), (column + width, row), (column + width, row + height), (column, row + height)]
    return scene.places_of(np.array(around, np.float64))


def footprint_of(path: str) -> Footprint | None:
    """Where an image lies; None: it has no coordinates, or cannot be read.

    Raises:
        ConfigError: rasterio is not installed.
    """
    if isinstance(path, WindowPath):
        scene = open_scene(path.scene)
        return Footprint(scene.crs, corners_of(scene, path.window))

    def footprint(source: Any, _: int) -> Footprint | None:
        if source.crs is None:
            return None
        place = tuple(source.transform)[:6]
        scene = Scene("", source.width, source.height, 1, "", source.crs, place, can_miss=False, is_picture=False)
        return Footprint(source.crs, corners_of(scene, scene.whole))

    try:
        return read_file(path, lambda file: with_gdal(file, footprint))
    except Unreadable:
        return None


def boxes_in_metres(footprints: Sequence[Footprint]) -> NDArray[np.float64]:
    """The boxes ``[N, 4]`` (left, bottom, right, top) around images, in metres; of pictures in pixels.

    Of one projected CRS, its own metres. Of degrees, of Mercator's projections, and of several CRS, metres of a plane
    whose scale along a parallel is that of the highest latitude: no two places are nearer on the ground than here.
    It is cut where the images leave the widest gap between west and east, not at the antimeridian.

    Raises:
        DataError: some have coordinates and others do not, or coordinates cannot be placed on the earth.
    """
    systems = {str(footprint.crs): footprint.crs for footprint in footprints}
    corners = np.stack([footprint.corners for footprint in footprints])
    if set(systems) == {"None"}:
        return _boxes(corners)
    if "None" in systems:
        raise DataError("some of the images have coordinates and others have none; keep them apart")
    crs = next(iter(systems.values()))
    is_true = not crs.is_geographic and crs.to_dict().get("proj") not in ("merc", "webmerc")
    if len(systems) == 1 and is_true:
        return _boxes(corners * float(crs.linear_units_factor[1]))
    degrees = np.empty_like(corners)
    for name, system in systems.items():
        of_it = [place for place, footprint in enumerate(footprints) if str(footprint.crs) == name]
        found = reproject(system, _LONGITUDES, corners[of_it].reshape(-1, 2)).reshape(-1, 4, 2)
        if not np.isfinite(found).all():
            raise DataError("the coordinates of some images lie outside their CRS; check it")
        # Each image stays whole: -179.9 beside 179.9 is 180.1.
        near = corners[of_it, :, 0] if system.is_geographic else found[:, :1, 0]
        found[..., 0] += 360 * np.round((near - found[..., 0]) / 360)
        degrees[of_it] = found
    degrees[..., 0] += 360 * _turns(degrees[..., 0].mean(axis=1))[:, None]
    scale = np.cos(np.radians(np.abs(degrees[..., 1]).max()))
    return _boxes(degrees * _METRES_OF_A_DEGREE * (scale, 1.0))


def _turns(longitudes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Whole turns, 0 or more, that bring longitudes ``[N]`` into one circle which begins behind their widest gap."""
    around = longitudes % 360
    ordered = np.sort(around)
    first = ordered[np.diff(ordered, prepend=ordered[-1] - 360).argmax()]
    turns = np.round(((around - first) % 360 + first - longitudes) / 360)
    return np.asarray(turns - turns.min())


def reproject(source: Any, target: Any, places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coordinates ``[N, 2]`` of one CRS in another; infinite where they cannot be.

    Raises:
        DataError: none of them can be.
    """
    rasterio = require_rasterio()
    warp = import_module("rasterio.warp")
    try:
        return np.stack(warp.transform(source, target, places[:, 0], places[:, 1])[:2], axis=-1)
    except rasterio.errors.RasterioError as error:
        raise DataError(f"coordinates cannot be brought from {source} to {target} ({error}); check the CRS") from None


def _boxes(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=-1)


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
