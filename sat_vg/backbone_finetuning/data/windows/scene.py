"""Scenes and windows of them, as data: where they are, and where their pixels lie on the ground."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Transform = tuple[float, float, float, float, float, float]
PIXELS: Transform = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


class Window(NamedTuple):
    """A part of a scene, in its pixels."""

    column: int
    row: int
    width: int
    height: int

    def __str__(self) -> str:
        return " ".join(map(str, self))


@dataclass(frozen=True)
class Scene:
    """What is known of a scene without its pixels."""

    path: str  # of its file
    width: int  # in pixels
    height: int  # in pixels
    bands: int  # their number
    dtype: str  # of its values
    crs: Any  # rasterio's CRS; None: it has pixel coordinates
    transform: Transform  # ``(a, b, c, d, e, f)`` with x = a * column + b * row + c and y = d * column + e * row + f
    can_miss: bool  # pixels can be missing: it has a nodata value, a mask, an alpha band or floating-point values
    is_picture: bool  # it is decoded as a whole
    is_rgb: bool = False  # its values are 8-bit RGB as they stand: no mask, scaling or description says more of them

    @property
    def whole(self) -> Window:
        """All of it."""
        return Window(0, 0, self.width, self.height)

    def places_of(self, pixels: NDArray[np.float64]) -> NDArray[np.float64]:
        """Coordinates ``[N, 2]`` (x, y) of places ``[N, 2]`` (column, row); pixel 0 reaches from 0 to 1."""
        a, b, c, d, e, f = self.transform
        return np.stack([pixels @ (a, b) + c, pixels @ (d, e) + f], axis=-1)

    def pixels_of(self, places: NDArray[np.float64]) -> NDArray[np.float64]:
        """The opposite of ``places_of``."""
        a, b, c, d, e, f = self.transform
        x, y = places[..., 0] - c, places[..., 1] - f
        return np.stack([e * x - b * y, a * y - d * x], axis=-1) / (a * e - b * d)

    def transform_of(self, window: Window) -> Transform:
        """The transform of a window's own pixels."""
        a, b, c, d, e, f = self.transform
        column, row = window[:2]
        return a, b, a * column + b * row + c, d, e, d * column + e * row + f


def rasterio_window(window: Window) -> Any:
    """The same for rasterio."""
    return import_module("rasterio.windows").Window(*window)


class Part(NamedTuple):
    """A window's values ``[bands, H, W]``, and where they are there ``[H, W]``; None: everywhere."""

    values: NDArray[Any]
    valid: NDArray[np.bool_] | None
