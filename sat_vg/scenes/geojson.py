"""GeoJSON (RFC 7946): labels with their classes in, regions of a class raster out."""

import json
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
from sat_vg.backbone_finetuning.utils.json_reading import UnsoundJSONError, read_json
from sat_vg.backbone_finetuning.utils.printable import list_some

LONGITUDES = "EPSG:4326"
PIXEL_COORDINATES = "pixels"
_MOST_BYTES = 2**30
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Label:
    """A feature with a class; its places are in the CRS of the file.

    Attributes:
        number: of the feature in the file, from 1.
        name: its class.
        polygons: each as rings ``[N, 2]``, the outer one first.
        points: ``[N, 2]``.
    """

    number: int
    name: str
    polygons: tuple[tuple[Numbers, ...], ...]
    points: Numbers

    def moved(self, places: Numbers) -> "Label":
        """The same at other places, which are those of ``places_of_all`` in order."""
        rings, rest = [], places
        for polygon in self.polygons:
            moved = []
            for ring in polygon:
                part, rest = rest[: len(ring)], rest[len(ring) :]
                moved.append(part)
            rings.append(tuple(moved))
        return Label(self.number, self.name, tuple(rings), rest)

    @property
    def places(self) -> Numbers:
        """All its places ``[N, 2]``."""
        return np.concatenate([*(ring for polygon in self.polygons for ring in polygon), self.points])


@dataclass(frozen=True)
class LabelFile:
    """Labels of a file.

    Attributes:
        path: of the file.
        labels: in its order.
        crs: that it names; None: it names none.
        bad: features that cannot be used: number and reason.
        num_empty: features without a geometry, which have no place and are passed over.
    """

    path: str
    labels: tuple[Label, ...]
    crs: str | None
    bad: tuple[tuple[int, str], ...]
    num_empty: int


class _BadFeature(Exception):
    """Why a feature is no label."""


def read_labels(path: str, column: str) -> LabelFile:
    """Points and polygons with their classes.

    Args:
        path: a GeoJSON file with a FeatureCollection or a Feature.
        column: the property that names the class.

    Raises:
        DataError: the file cannot be read, holds no features, or none of them has the property.
    """
    try:
        content = read_json(path, _MOST_BYTES)
    except (OSError, UnsoundJSONError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"the labels {path!r} cannot be read ({reason}); give a GeoJSON file") from None
    features = _features_of(path, content)
    _require_column(path, features, column)
    labels, bad, num_empty = list[Label](), list[tuple[int, str]](), 0
    for number, feature in enumerate(features, 1):
        if isinstance(feature, dict) and feature.get("geometry", 0) is None:
            num_empty += 1
            continue
        try:
            labels.append(_label_of(number, feature, column))
        except _BadFeature as error:
            bad.append((number, str(error)))
    return LabelFile(path, tuple(labels), _crs_of(path, content), tuple(bad), num_empty)


def _features_of(path: str, content: Any) -> list[Any]:
    kind = content.get("type") if isinstance(content, dict) else None
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
    crs = content.get("crs")
    if crs is None:
        return None
    name = crs.get("properties", {}).get("name") if isinstance(crs, dict) else None
    if not isinstance(name, str):
        raise DataError(f"the labels {path!r} name their CRS in a way that is not known; say it with --labels_crs")
    return name


def _label_of(number: int, feature: Any, column: str) -> Label:
    if not isinstance(feature, dict) or feature.get("type") != "Feature":
        raise _BadFeature("is no Feature of GeoJSON")
    value = (feature.get("properties") or {}).get(column)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    name = "" if value is None or isinstance(value, list | dict | bool) else same_form(str(value)).strip()
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
    kind = geometry.get("type") if isinstance(geometry, dict) else None
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


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise _BadFeature("has coordinates that are no list")
    return value


def _positions(coordinates: Any) -> Numbers:
    try:
        places = np.array([[float(part) for part in position[:2]] for position in _list(coordinates)], np.float64)
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
    ends = np.searchsorted(left, right, "right")
    for number, (edge, end) in enumerate(zip(edges, ends, strict=True)):
        others = edges[number + 1 : end]
        if (
            len(others)
            and (
                (_side(edge, others[:, :2]) * _side(edge, others[:, 2:]) < 0)
                & (_side(others, edge[:2]) * _side(others, edge[2:]) < 0)
            ).any()
        ):
            return True
    return False


def _side(edges: Numbers, places: Numbers) -> Numbers:
    """On which side of edges places lie, by the sign."""
    begin, along = edges[..., :2], edges[..., 2:] - edges[..., :2]
    away = places - begin
    return np.asarray(along[..., 0] * away[..., 1] - along[..., 1] * away[..., 0])


def crs_named(name: str, flag: str) -> Any:
    """The CRS of a name such as ``EPSG:32632``.

    Raises:
        ConfigError: there is none.
    """
    rasterio = require_rasterio()
    try:
        return rasterio.CRS.from_user_input(name)
    except rasterio.errors.CRSError as error:
        raise ConfigError(f"{flag} {name!r}: there is no such CRS ({error}); for example EPSG:32632") from None


def regions_of(raster: Any, transform: Any, crs: Any, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The regions of equal classes as features, in longitude and latitude; in pixels where there is no CRS.

    Args:
        raster: numbers of the classes from 1, as an array ``[H, W]`` or a rasterio band; 0 is no class.
        transform: of its pixels.
        crs: of the transform; None: pixels.
        names: of the classes.
    """
    shapes = import_module("rasterio.features").shapes
    warp = import_module("rasterio.warp")
    for geometry, value in shapes(raster, connectivity=4, transform=transform):
        if int(value):
            placed = geometry if crs is None else warp.transform_geom(crs, LONGITUDES, geometry)
            yield feature_of(placed, {"class": names[int(value) - 1]})


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
    """Write the regions of a class raster (see ``regions_of``); returns their number."""
    return write_features(path, regions_of(raster, transform, crs, names))
