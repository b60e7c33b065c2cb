"""GeoJSON (RFC 7946): labels with their classes in, regions of a class raster out."""

import json
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sat_vg.backbone_finetuning.data.reading.gdal import require_rasterio
from sat_vg.backbone_finetuning.data.sources.class_names import same_form
from sat_vg.backbone_finetuning.utils.errors import ConfigError, DataError
from sat_vg.backbone_finetuning.utils.json_reading import UnsoundJSONError, parse_json
from sat_vg.backbone_finetuning.utils.printable import list_some
from sat_vg.backbone_finetuning.utils.regular_files import read_bounded

LONGITUDES = "EPSG:4326"
PIXEL_COORDINATES = "pixels"
_MOST_BYTES = 2**30
_EDGES = 16  # of a ring that are compared with others at a time
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Label:
    """A feature with a class; its places are in the CRS of the file."""

    number: int  # of the feature in the file, from 1
    name: str  # its class
    polygons: tuple[tuple[Numbers, ...], ...]  # each as rings [N, 2], the outer one first
    points: Numbers  # [N, 2]

    def moved(self, places: Numbers) -> "Label":
        """The same at other places, given in the order of ``places``."""
        lengths = [len(ring) for polygon in self.polygons for ring in polygon]
        *rings, points = np.split(places, np.cumsum(lengths))
        moved = iter(rings)
        polygons = tuple(tuple(next(moved) for _ in polygon) for polygon in self.polygons)
        return Label(self.number, self.name, polygons, points)

    @property
    def places(self) -> Numbers:
        """All its places ``[N, 2]``."""
        return np.concatenate([*(ring for polygon in self.polygons for ring in polygon), self.points])


@dataclass(frozen=True)
class LabelFile:
    """Labels of a file, in its order."""

    path: str
    labels: tuple[Label, ...]
    crs: str | None  # that it names
    bad: tuple[tuple[int, str], ...]  # features that cannot be used: number and reason
    num_empty: int  # features without a geometry, which have no place and are passed over


class _BadFeature(Exception):
    """Why a feature is no label."""


def read_labels(path: str, column: str) -> LabelFile:
    """Points and polygons of a FeatureCollection or a Feature, with the classes that the property ``column`` names.

    Raises:
        DataError: the file cannot be read, holds no features, or none of them has the property.
    """
    try:
        content = parse_json(read_bounded(path, _MOST_BYTES).removeprefix(BOM_UTF8))
    except (OSError, UnsoundJSONError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"the labels {path!r} cannot be read ({reason}); give a GeoJSON file") from None
    features = _features_of(path, content)
    _require_column(path, features, column)
    labels, bad, num_empty = list[Label](), list[tuple[int, str]](), 0
    for number, feature in enumerate(features, 1):
        if isinstance(feature, dict) and "geometry" in feature and feature["geometry"] is None:
            num_empty += 1
            continue
        try:
            labels.append(_label_of(number, feature, column))
        except _BadFeature as error:
            bad.append((number, str(error)))
    return LabelFile(path, tuple(labels), _crs_of(path, content), tuple(bad), num_empty)


def _features_of(path: str, content: Any) -> list[Any]:
    kind = _member(content, "type")
    features = content.get("features") if kind == "FeatureCollection" else [content] if kind == "Feature" else None
    if not isinstance(features, list):
        raise DataError(f"the labels {path!r} are no FeatureCollection of GeoJSON (type {kind!r}); convert them")
    if not features:
        raise DataError(f"the labels {path!r} hold no features; add points or polygons")
    return features


def _require_column(path: str, features: Sequence[Any], column: str) -> None:
    properties = [feature.get("properties") for feature in features if isinstance(feature, dict)]
    known = sorted({name for each in properties if isinstance(each, dict) for name in each})
    if column not in known:
        held = f"they have {list_some(list(map(repr, known)), 10)}" if known else "they have none"
        raise DataError(
            f"no feature of {path!r} has a property {column!r}; {held}: name the one with the class by --label_column"
        )


def _crs_of(path: str, content: Mapping[str, Any]) -> str | None:
    """The member ``crs`` of files from before RFC 7946."""
    if content.get("crs") is None:
        return None
    name = _member(_member(content["crs"], "properties"), "name")
    if not isinstance(name, str):
        raise DataError(f"the labels {path!r} name their CRS in a way that is not known; say it with --labels_crs")
    return name


def _label_of(number: int, feature: Any, column: str) -> Label:
    if _member(feature, "type") != "Feature":
        raise _BadFeature("is no Feature of GeoJSON")
    value = _member(_member(feature, "properties"), column)
    if isinstance(value, bool):
        value = json.dumps(value)
    elif isinstance(value, float) and value.is_integer():
        value = int(value)
    name = "" if value is None or isinstance(value, list | dict) else same_form(str(value)).strip()
    if not name:
        raise _BadFeature(f"has no class in its property {column!r}")
    polygons: list[tuple[Numbers, ...]] = []
    points: list[Numbers] = []
    for kind, coordinates in _parts(feature.get("geometry")):
        if kind == "Point":
            points.append(_positions([coordinates]))
        else:
            polygons.append(_polygon(coordinates))
    if not polygons and not points:
        raise _BadFeature("has an empty geometry")
    return Label(number, name, tuple(polygons), np.concatenate([np.empty((0, 2)), *points]))


def _parts(geometry: Any) -> Iterator[tuple[str, Any]]:
    """The points and polygons of a geometry."""
    kind = _member(geometry, "type")
    if kind is None:
        raise _BadFeature("has no geometry of GeoJSON")
    if kind == "GeometryCollection":
        for each in _list(geometry.get("geometries")):
            yield from _parts(each)
    elif kind in ("Point", "Polygon"):
        yield kind, geometry.get("coordinates")
    elif kind in ("MultiPoint", "MultiPolygon"):
        for each in _list(geometry.get("coordinates")):
            yield kind.removeprefix("Multi"), each
    else:
        raise _BadFeature(f"is a {kind}, which covers no ground; only points and polygons are labels")


def _member(value: Any, name: str) -> Any:
    """A member of an object; None where there is none, or the value is no object."""
    return value.get(name) if isinstance(value, dict) else None


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise _BadFeature("has coordinates that are no list")
    return value


def _positions(coordinates: Any) -> Numbers:
    try:
        places = np.array(
            [[float(part) for part in _list(position)[:2]] for position in _list(coordinates)], np.float64
        )
    except (TypeError, ValueError):
        raise _BadFeature("has coordinates that are no numbers") from None
    if places.ndim != 2 or places.shape[1] != 2 or not np.isfinite(places).all():
        raise _BadFeature("has coordinates that are no pairs of numbers")
    return places


def _polygon(coordinates: Any) -> tuple[Numbers, ...]:
    rings = tuple(_positions(ring) for ring in _list(coordinates))
    if not rings:
        raise _BadFeature("is a polygon without a ring")
    for ring in rings:
        if len(ring) < 4 or (ring[0] != ring[-1]).any():
            raise _BadFeature("is a polygon whose ring is not closed (the last of 4 or more positions is the first)")
        if _crosses_itself(ring):
            raise _BadFeature("is a polygon whose ring crosses itself")
        x, y = (ring - ring[0]).T
        if not abs(float(x[:-1] @ y[1:] - y[:-1] @ x[1:])):
            raise _BadFeature("is a polygon without an area")
    return rings


def _crosses_itself(ring: Numbers) -> bool:
    """Whether two edges of a ring cross; edges that only touch do not."""
    edges = np.concatenate([ring[:-1], ring[1:]], axis=1)
    left, right = edges[:, ::2].min(axis=1), edges[:, ::2].max(axis=1)
    order = np.argsort(left, kind="stable")
    edges, left, right = edges[order], left[order], right[order]
    ends = np.searchsorted(left, right, "right")  # behind the last edge that begins before this one ends
    for start in range(0, len(edges), _EDGES):
        some = edges[start : start + _EDGES, None]
        others = edges[None, start : ends[start : start + _EDGES].max()]
        if ((_sides(some, others) < 0) & (_sides(others, some) < 0)).any():
            return True
    return False


def _sides(edges: Numbers, others: Numbers) -> Numbers:
    """Below 0 where the ends of another edge lie on two sides of the line through an edge."""
    begin, along = edges[..., :2], edges[..., 2:] - edges[..., :2]
    first, last = others[..., :2] - begin, others[..., 2:] - begin
    crossed = [along[..., 0] * away[..., 1] - along[..., 1] * away[..., 0] for away in (first, last)]
    return np.asarray(np.sign(crossed[0]) * np.sign(crossed[1]))


def crs_named(name: str, flag: str) -> Any:
    """The CRS of a name such as ``EPSG:32632``.

    Raises:
        ConfigError: there is none.
    """
    rasterio = require_rasterio()
    try:
        with rasterio.Env():  # else PROJ writes its own line to standard error
            return rasterio.CRS.from_user_input(name)
    except rasterio.errors.CRSError as error:
        raise ConfigError(f"{flag} {name!r}: there is no such CRS ({error}); for example EPSG:32632") from None


def feature_of(geometry: Any, properties: Mapping[str, Any]) -> dict[str, Any]:
    """A Feature of GeoJSON."""
    return {"type": "Feature", "properties": dict(properties), "geometry": geometry}


def write_features(path: Path, features: Iterable[Mapping[str, Any]]) -> int:
    """Write a FeatureCollection, a feature a line; returns their number."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        for count, feature in enumerate(features, 1):
            file.write(("\n" if count == 1 else ",\n") + json.dumps(feature))
        file.write("\n]}\n")
    return count


def write_regions(path: Path, raster: Any, transform: Any, crs: Any, names: Sequence[str]) -> int:
    """Write the regions of equal classes as features, in longitude and latitude; in pixels where there is no CRS.

    ``raster`` holds the numbers of the classes from 1, as an array ``[H, W]`` or a rasterio band; 0 is no class.
    Returns how many regions there are.
    """
    shapes, warp = import_module("rasterio.features").shapes, import_module("rasterio.warp")
    regions = (
        feature_of(
            geometry if crs is None else warp.transform_geom(crs, LONGITUDES, geometry),
            {"class": names[int(value) - 1]},
        )
        for geometry, value in shapes(raster, connectivity=4, transform=transform)
        if int(value)
    )
    return write_features(path, regions)
