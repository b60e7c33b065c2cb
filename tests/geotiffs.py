"""Small GeoTIFFs as Sentinel-2 has them: 13 described bands of uint16, in which 0 is nodata."""

from pathlib import Path

import numpy as np
import pytest

rasterio = pytest.importorskip("rasterio", reason="GeoTIFFs need rasterio: pip install 'sat_vg[geo]'")

CLASSES = {"forest": 500, "field": 1500}
BANDS = "red=1,green=2,blue=3"
SENTINEL_2 = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
# Reflectance times 10 000 of blue, green, red and near infrared; the other bands lie about their mean.
SPECTRA = {"field": (400, 700, 500, 3500), "sea": (900, 600, 300, 120), "town": (1500, 1600, 1700, 1900)}


def write_geotiff(path: Path, values: np.ndarray, *, descriptions: tuple[str, ...] = (), **profile: object) -> Path:
    """Write ``values [bands, H, W]``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = values.shape
    place = rasterio.transform.from_origin(500_000, 5_000_000, 10, 10)
    settings = {
        "driver": "GTiff", "count": count, "height": height, "width": width, "dtype": values.dtype.name,
        "crs": "EPSG:32632", "transform": place, **profile,
    }  # fmt: skip
    with rasterio.open(path, "w", **settings) as file:
        file.write(values)
        for number, text in enumerate(descriptions, 1):
            file.set_band_description(number, text)
    return path


def sentinel_2(name: str, seed: int, size: int = 40) -> np.ndarray:
    """A made-up tile of a class, uint16 ``[13, size, size]``, with a stripe of nodata in every third."""
    generator = np.random.default_rng(seed)
    blue, green, red, infrared = SPECTRA[name]
    levels = np.full(len(SENTINEL_2), (blue + green + red + infrared) / 4)
    levels[[1, 2, 3, 7]] = blue, green, red, infrared
    values = levels[:, None, None] * generator.normal(1, 0.1, (len(SENTINEL_2), size, size))
    values[:, size // 4 : size // 2, size // 4 : size // 2] *= generator.uniform(0.6, 1.4)  # something to look at
    tile = np.clip(values, 1, 10_000).astype(np.uint16)
    if seed % 3 == 0:
        tile[:, :, :5] = 0
    return tile


def place_of(number: int) -> rasterio.Affine:
    """Pixels of 10 m, 5 km from those of any other number below 10 000: images of one place would be neighbours."""
    return rasterio.transform.from_origin(
        250_000 + 5_000 * (number % 100), 4_000_000 + 5_000 * (number // 100), 10, 10
    )


def write_tiles(root: Path, per_class: dict[str, int], **profile: object) -> Path:
    """``train/`` and ``val/`` with three classes of such tiles."""
    for number, name in enumerate(SPECTRA):
        for split, count in per_class.items():
            for index in range(count):
                seed = 1000 * number + 100 * (split == "val") + index
                tile, place = sentinel_2(name, seed), {"transform": place_of(seed), **profile}
                path = root / split / name / f"{split}_{index}.tif"
                write_geotiff(path, tile, descriptions=SENTINEL_2, nodata=0, **place)
    return root


def tile(level: float, seed: int, dtype: str = "uint16", bands: int = 3) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 40, (bands, 24, 24))
    return np.clip(level + noise, 1, None).astype(dtype)


def write_set(root: Path, per_class: int = 10, change=None, **options: object) -> Path:
    """Class folders of GeoTIFFs; ``change(values, profile, number)`` gives some of them another look."""
    for place, (name, level) in enumerate(CLASSES.items()):
        for number in range(per_class):
            values, profile = (
                tile(level, 100 * level + number),
                {"transform": place_of(100 * place + number), **options},
            )
            if change is not None:
                values, profile = change(values, profile, number)
            tags = {key: profile.pop(key) for key in ("scales", "offsets") if key in profile}
            path = write_geotiff(root / name / f"{number}.tif", values, **profile)
            with rasterio.open(path, "r+") as file:
                for key, value in tags.items():
                    setattr(file, key, (value,) * len(values))
    return root


def said(findings: dict[str, object]) -> str:
    return "\n".join((*findings["errors"], *findings["warnings"]))
