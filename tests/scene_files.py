"""Small scenes with coordinates, in any CRS and the right way up or not, and labels on them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

rasterio = pytest.importorskip("rasterio", reason="scenes with coordinates need rasterio: pip install 'sat_vg[geo]'")
from rasterio.warp import transform as reproject  # noqa: E402

UTM = rasterio.Affine(10, 0, 500_000, 0, -10, 5_300_000)
PLACES = {
    "utm": ("EPSG:32632", UTM),
    "south-up": ("EPSG:32632", rasterio.Affine(10, 0, 500_000, 0, 10, 5_300_000)),
    "turned": ("EPSG:32632", rasterio.Affine(8.66, 5, 500_000, 5, -8.66, 5_300_000)),
    "degrees": ("EPSG:4326", rasterio.Affine(1e-4, 0, 9, 0, -1e-4, 48)),
    "mercator": ("EPSG:3857", rasterio.Affine(15, 0, 1_000_000, 0, -15, 6_100_000)),
    "south": ("EPSG:32733", rasterio.Affine(10, 0, 400_000, 0, -10, 7_000_000)),
}


def at(transform: Any, column: float, row: float) -> tuple[float, float]:
    """Coordinates of a place in pixels."""
    a, b, c, d, e, f = tuple(transform)[:6]
    return a * column + b * row + c, d * column + e * row + f


def pixels(height: int, width: int, bands: int = 3, dtype: str = "uint8", seed: int = 0) -> np.ndarray:
    """Noise, darker at the left."""
    values = np.random.default_rng(seed).integers(60, 190, (bands, height, width))
    return (values + np.linspace(-50, 50, width)).astype(dtype)


def write_scene(path: Path, values: np.ndarray | None = None, place: str = "utm", **profile: Any) -> Path:
    values = pixels(128, 192) if values is None else values
    crs, transform = PLACES[place]
    count, height, width = values.shape
    settings = {
        "driver": "GTiff", "count": count, "height": height, "width": width, "dtype": values.dtype.name, "crs": crs,
        "transform": transform, "tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate",
        **({"photometric": "RGB"} if count == 3 else {}), **profile,
    }  # fmt: skip
    with rasterio.open(path, "w", **settings) as file:
        file.write(values)
    return path


def rectangle(left: float, top: float, right: float, bottom: float) -> list[tuple[float, float]]:
    return [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]


def placed(points: list[tuple[float, float]], place: str, crs: str | None = "EPSG:4326") -> list[list[float]]:
    """Pixels of a scene as coordinates of a CRS; None: pixels."""
    if crs is None:
        return [list(map(float, point)) for point in points]
    own, transform = PLACES[place]
    x, y = zip(*(at(transform, *point) for point in points), strict=True)
    return [list(pair) for pair in zip(*reproject(own, crs, x, y)[:2], strict=True)]


def polygon(name: Any, *corners: float, place: str = "utm", crs: str | None = "EPSG:4326") -> dict[str, Any]:
    """A rectangle (left, top, right, bottom) in pixels, as a feature."""
    ring = placed(rectangle(*corners), place, crs)
    return feature(name, {"type": "Polygon", "coordinates": [ring]})


def point(name: Any, x: float, y: float, place: str = "utm", crs: str | None = "EPSG:4326") -> dict[str, Any]:
    return feature(name, {"type": "Point", "coordinates": placed([(x, y)], place, crs)[0]})


def feature(name: Any, geometry: Any) -> dict[str, Any]:
    return {"type": "Feature", "properties": {"class": name}, "geometry": geometry}


def write_labels(path: Path, *features: Any, **more: Any) -> Path:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(features), **more}))
    return path
