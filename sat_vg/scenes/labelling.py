"""Which class a window has, by the points and polygons of a label file."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sat_vg.backbone_finetuning.data.reading.gdal import require_rasterio
from sat_vg.backbone_finetuning.data.windows.paths import grid_of, require_room, shares_of, valid_shares
from sat_vg.backbone_finetuning.data.windows.places import corners_of, reproject
from sat_vg.backbone_finetuning.data.windows.scene import Scene, Window
from sat_vg.backbone_finetuning.utils.errors import DataError
from sat_vg.scenes.geojson import LONGITUDES, PIXEL_COORDINATES, Label, LabelFile, Numbers, crs_named
from sat_vg.scenes.options import TileOptions


class Tile(NamedTuple):
    """A window with its class, and its part of the data: train, val or test; empty where these are not split."""

    scene: Scene
    window: Window
    label: str
    part: str = ""


@dataclass
class Labelled:
    """The tiles of all scenes in the order of their windows, and what came of the rest."""

    tiles: list[Tile] = field(default_factory=list)
    without_label: int = 0  # windows that no class covers enough
    ambiguous: int = 0  # windows of which two classes cover as much
    in_nodata: Counter[str] = field(default_factory=Counter)  # windows of each class that are mostly nodata
    best_cover: dict[str, float] = field(default_factory=dict)  # the largest share of a window, by class
    inside: set[int] = field(default_factory=set)  # numbers of the features that lie in a scene


def label_windows(scenes: Sequence[Scene], labels: LabelFile, options: TileOptions) -> Labelled:
    """The windows of scenes that have a class.

    Raises:
        DataError: the labels cannot be placed on the scenes, or a scene is damaged.
        ConfigError: a scene is smaller than a window.
    """
    found = Labelled()
    names = sorted({label.name for label in labels.labels})
    for scene in scenes:
        placed = place_labels(labels, scene, options.labels_crs)
        there = [label for label in placed if _is_inside(label, scene)]
        found.inside |= {label.number for label in there}
        if options.windows == "grid":
            windows = grid_of(scene, options.size, options.stride or options.size)
            classes = _classes_by_majority(scene, windows, there, names, options.min_cover, found)
        else:
            windows, classes = _around_features(scene, there, options.size, found)
        _add_tiles(scene, windows, classes, options.min_valid, found)
    return found


def place_labels(labels: LabelFile, scene: Scene, labels_crs: str | None) -> list[Label]:
    """The labels in a scene's pixels.

    Raises:
        DataError: it is not known how.
        ConfigError: there is no such CRS.
    """
    named = labels_crs or labels.crs
    if named == PIXEL_COORDINATES or (scene.crs is None and scene.is_picture and named is None):
        return list(labels.labels)
    if scene.crs is None:
        raise DataError(
            f"the scene {scene.path!r} has no CRS, so coordinates cannot be placed on it; write it in (rio edit-info "
            "--crs EPSG:32632 SCENE.tif), or give labels in pixels with --labels_crs pixels"
        )
    crs = crs_named(named or LONGITUDES, "--labels_crs" if labels_crs else f"the labels {labels.path!r}: crs")
    if not labels.labels:
        return []
    places = np.concatenate([label.places for label in labels.labels])
    if crs.is_geographic and (np.abs(places) > (360, 90)).any():
        x, y = places[(np.abs(places) > (360, 90)).any(axis=1)][0]
        raise DataError(
            f"{labels.path!r} holds the coordinates {x:g}, {y:g}, which are no longitude and latitude; say what they "
            "are with --labels_crs, such as EPSG:32632"
        )
    moved = reproject(crs, scene.crs, places) if crs != scene.crs else places
    if scene.crs.is_geographic:
        moved = _turned_to(scene, moved, labels.labels)
    parts = np.split(scene.pixels_of(moved), np.cumsum([len(label.places) for label in labels.labels])[:-1])
    return [label.moved(part) for label, part in zip(labels.labels, parts, strict=True)]


def _turned_to(scene: Scene, places: Numbers, labels: Sequence[Label]) -> Numbers:
    """Longitudes by whole turns nearer to a scene: -179.9 is 180.1 where that one reaches beyond 180 degrees."""
    lengths: list[int] = []  # of what is turned as one: a polygon with its holes, or a point
    for label in labels:
        lengths += [*(sum(map(len, polygon)) for polygon in label.polygons), *[1] * len(label.points)]
    starts = np.cumsum([0, *lengths[:-1]])
    low, high = (extreme.reduceat(places[:, 0], starts) for extreme in (np.minimum, np.maximum))
    middle = corners_of(scene, scene.whole)[:, 0].mean()
    turns = np.nan_to_num(np.round((middle - (low + high) / 2) / 360), posinf=0, neginf=0)
    return places + np.repeat(360 * turns, lengths)[:, None] * (1, 0)


def _is_inside(label: Label, scene: Scene) -> bool:
    """Whether a part of a label lies in the scene, by the boxes around its parts."""
    size = np.array((scene.width, scene.height))
    for part in (*(polygon[0] for polygon in label.polygons), *label.points[:, None]):
        low, high = part.min(axis=0), part.max(axis=0)
        reaches_in = (high >= 0) if len(part) == 1 else (high > 0)
        if np.isfinite(part).all() and (reaches_in & (low < size)).all():
            return True
    return False


def _classes_by_majority(
    scene: Scene,
    windows: Sequence[Window],
    labels: Sequence[Label],
    names: Sequence[str],
    least: float,
    found: Labelled,
) -> list[str | None]:
    """Of each window the class that covers most of it, at least ``least``; else the class of most points in it."""
    if not labels:
        found.without_label += len(windows)
        return [None] * len(windows)
    shares = np.zeros((len(names), len(windows)))
    polygons = [label for label in labels if label.polygons]
    if polygons:
        for number, name in enumerate(names):
            shares[number] = _covered(scene, windows, [label for label in polygons if label.name == name])
            found.best_cover[name] = max(found.best_cover.get(name, 0.0), float(shares[number].max()))
    counts = np.where(shares.max(axis=0) >= least, shares, _points_in(windows, labels, names))
    how_many = ((counts == counts.max(axis=0)) & (counts > 0)).sum(axis=0)
    found.without_label += int((how_many == 0).sum())
    found.ambiguous += int((how_many > 1).sum())
    return [names[best] if one else None for best, one in zip(counts.argmax(axis=0), how_many == 1, strict=True)]


def _covered(scene: Scene, windows: Sequence[Window], labels: Sequence[Label]) -> NDArray[np.float64]:
    """Share of each window that polygons cover."""
    polygons = [polygon for label in labels for polygon in label.polygons]
    shapes = [{"type": "Polygon", "coordinates": [ring.tolist() for ring in polygon]} for polygon in polygons]
    rows = [(polygon[0][:, 1].min(), polygon[0][:, 1].max()) for polygon in polygons]

    def drawn(row: int, height: int) -> NDArray[np.uint8] | None:
        here = [shape for shape, (low, high) in zip(shapes, rows, strict=True) if low < row + height and high > row]
        if not here:
            return None
        place = require_rasterio().Affine.translation(0, row)
        rasterize = import_module("rasterio.features").rasterize
        found: NDArray[np.uint8] = rasterize(here, (height, scene.width), transform=place, dtype="uint8")
        return found

    return shares_of(windows, drawn)


def _points_in(windows: Sequence[Window], labels: Sequence[Label], names: Sequence[str]) -> NDArray[np.int32]:
    """How many points of each class lie in each window of a grid ``[classes, windows]``."""
    rows, columns = (np.unique([window[axis] for window in windows]) for axis in (1, 0))
    size = windows[0].width
    counts = np.zeros((len(names), len(rows), len(columns)), np.int32)
    for label in labels:
        of_class = counts[names.index(label.name)]
        for x, y in label.points:
            # The windows over a point are neighbours in the grid: they begin less than their size before it.
            over = (
                slice(*np.searchsorted(first, (place - size, place), "right"))
                for first, place in ((rows, y), (columns, x))
            )
            of_class[tuple(over)] += 1
    return counts.reshape(len(names), -1)


def _around_features(
    scene: Scene, labels: Sequence[Label], size: int, found: Labelled
) -> tuple[list[Window], list[str | None]]:
    """A window around each point and polygon, moved into the scene where it would lead out."""
    require_room(scene, size)
    classes: dict[Window, str | None] = {}
    for label in labels:
        for part in (*(polygon[0] for polygon in label.polygons), *label.points[:, None]):
            middle = (part.min(axis=0) + part.max(axis=0)) / 2
            if not np.isfinite(middle).all() or (middle < 0).any() or (middle >= (scene.width, scene.height)).any():
                continue
            corner = np.clip(np.floor(middle - size / 2), 0, np.array((scene.width, scene.height)) - size)
            window = Window(int(corner[0]), int(corner[1]), size, size)
            classes[window] = label.name if classes.get(window, label.name) == label.name else None
            found.best_cover[label.name] = 1.0
    ordered = sorted(classes, key=lambda window: (window.row, window.column))
    found.ambiguous += sum(classes[window] is None for window in ordered)
    return ordered, [classes[window] for window in ordered]


def _add_tiles(
    scene: Scene, windows: Sequence[Window], classes: Sequence[str | None], least: float, found: Labelled
) -> None:
    labelled = [(window, name) for window, name in zip(windows, classes, strict=True) if name is not None]
    valid = valid_shares(scene, [window for window, _ in labelled])
    for (window, name), share in zip(labelled, valid, strict=True):
        if share >= least:
            found.tiles.append(Tile(scene, window, name))
        else:
            found.in_nodata[name] += 1
