"""Scenes: large images of which windows are read.

A GeoTIFF or JPEG 2000 may be of any size, as GDAL reads only the blocks around a window. A plain picture (PNG, JPEG
and what else ``decoding`` reads) is decoded as a whole and has pixel coordinates. Files on this machine's disk are
read, by the driver that their first bytes name; what lies beside them (``.aux.xml``, ``.tfw``, ``.msk``) is not.

A process opens a scene once. Its threads read one at a time: a window is a copy out of GDAL's cache of blocks, and
with a handle for each thread every block would be unpacked as many times.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sat_vg.backbone_finetuning.data.reading.gdal import JPEG2000_MAGIC
from sat_vg.backbone_finetuning.data.reading.limits import TIFF_MAGIC, require_bounded_tiff
from sat_vg.backbone_finetuning.data.windows.readers import Picture, Raster, Reader, explained
from sat_vg.backbone_finetuning.data.windows.scene import PIXELS, Part, Scene, Window, rasterio_window
from sat_vg.backbone_finetuning.utils.errors import DataError
from sat_vg.backbone_finetuning.utils.file_stamps import stamp_of
from sat_vg.backbone_finetuning.utils.regular_files import open_regular
from sat_vg.backbone_finetuning.utils.unreadable import Unreadable

_MOST_OPEN = 4
MEND = "mend the scene"


class _OpenScenes:
    """The scenes that this process has open, the last used ones; forked processes open them anew."""

    def __init__(self) -> None:
        self._inherited: list[object] = []
        self._forget()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._inherited.append(getattr(self, "_readers", None))  # the parent's: closing them here could hang
        self._lock = threading.RLock()
        self._readers: OrderedDict[str, tuple[str, Reader]] = OrderedDict()

    @contextmanager
    def use(self, path: str) -> Iterator[Reader]:
        """The reader of a scene, for this thread alone."""
        with self._lock:
            stamp = _stamp(path)
            known = self._readers.pop(path, None)
            if known is not None and known[0] != stamp:
                known[1].close()
                known = None
            self._readers[path] = known = known or (stamp, _reader_of(path))
            while len(self._readers) > _MOST_OPEN:
                self._readers.popitem(last=False)[1][1].close()
            yield known[1]


_OPEN = _OpenScenes()


def _stamp(path: str) -> str:
    try:
        return stamp_of(path)
    except (OSError, ValueError) as error:
        if "://" in path or path.startswith("/vsi"):
            raise DataError(
                f"the scene {path!r} is not on this machine's disk: scenes are read from files; download it first"
            ) from None
        raise _not_opened(path, error) from None


def _not_opened(path: str, error: OSError | ValueError) -> DataError:
    return DataError(
        f"the scene {path!r} cannot be opened ({getattr(error, 'strerror', None) or error}); give a file"
    )


def _reader_of(path: str) -> Reader:
    try:
        with open_regular(path) as file:
            head, num_bytes = file.read(16), file.seek(0, os.SEEK_END)
            require_bounded_tiff(file)
    except Unreadable as problem:
        raise DataError(f"the scene {path!r} cannot be read: {problem.reason}; {problem.remedy}") from None
    except (OSError, ValueError) as error:
        raise _not_opened(path, error) from None
    try:
        path.encode()
    except UnicodeEncodeError:
        raise DataError(f"the scene {path!r} has a name that is not UTF-8, which GDAL cannot open; rename") from None
    if head[:4] in TIFF_MAGIC:
        return Raster(path, "GTiff", num_bytes)
    if head.startswith(JPEG2000_MAGIC):
        return Raster(path, "JP2OpenJPEG", num_bytes)
    return Picture(path)


def open_placed_scene(path: str) -> Scene:
    """The same of a scene whose coordinates can be used: in a CRS, or pixels.

    Raises:
        DataError: as ``open_scene``, or it has a transform and no CRS.
    """
    scene = open_scene(path)
    if scene.crs is None and scene.transform != PIXELS:
        raise DataError(
            f"the scene {path!r} has a transform and no CRS, so nobody knows where it lies; write it in: rio "
            "edit-info --crs EPSG:32632 SCENE.tif"
        )
    return scene


def open_scene(path: str) -> Scene:
    """What is known of a scene.

    Raises:
        DataError: it is no image of this machine's disk, damaged, or of a kind of which windows cannot be read.
        ConfigError: it is a GeoTIFF, and rasterio is not installed.
    """
    with _OPEN.use(path) as reader:
        return reader.scene


def read_part(path: str, window: Window, step: int = 1) -> Part:
    """Values of a window, every ``step``-th row and column. Raises DataError where the scene is damaged."""
    with _OPEN.use(path) as reader:
        return reader.read(window, step)


def valid_pixels(path: str, window: Window) -> NDArray[np.bool_] | None:
    """Where a window has values ``[H, W]``; None: everywhere. Raises DataError where the scene is damaged."""
    with _OPEN.use(path) as reader:
        return reader.valid(window)


def encode_window(path: str, window: Window, is_compressed: bool = False) -> bytes | None:
    """A window as an image file with its coordinates, bands, nodata and scaling; None where it has no valid pixel.

    Raises:
        DataError: the scene is damaged.
    """
    with _OPEN.use(path) as reader:
        part = read_part(path, window)
    if part.valid is not None and not part.valid.any():
        return None
    return reader.encode(part, window, is_compressed)


def rgb_window(path: str, window: Window) -> NDArray[np.uint8] | None:
    """Pixels ``[H, W, 3]`` of a scene that ``is_rgb``; None: none is valid. Raises DataError."""
    part = read_part(path, window)
    if part.valid is not None and not part.valid.any():
        return None
    return np.ascontiguousarray(part.values.transpose(1, 2, 0))


class WindowDataset:
    """A window of a raster as rasterio shows its image file; each read is of the scene.

    Attributes:
        width: in pixels.
        height: in pixels.
        num_bytes: of the values.
        profile: how they are stored: without loss.
    """

    def __init__(self, path: str, window: Window, header: dict[str, Any]) -> None:
        self.__dict__.update(header)
        self._path, self._window = path, rasterio_window(window)
        self.width, self.height, self.profile = window.width, window.height, dict[str, Any]()
        self.num_bytes = self.width * self.height * sum(np.dtype(kind).itemsize for kind in header["dtypes"])

    def read(self, bands: int | list[int] | None = None, **how: Any) -> NDArray[Any]:
        """As rasterio's. Raises Unreadable where the scene is damaged."""
        return self._of_scene("read", bands, how)

    def read_masks(self, band: int, **how: Any) -> NDArray[np.uint8]:
        """As rasterio's. Raises Unreadable where the scene is damaged."""
        return self._of_scene("read_masks", band, how)

    def _of_scene(self, method: str, bands: Any, how: dict[str, Any]) -> NDArray[Any]:
        try:
            with _OPEN.use(self._path) as reader, explained(self._path):
                assert isinstance(reader, Raster), self._path
                values: NDArray[Any] = getattr(reader.source, method)(bands, window=self._window, **how)
                return values
        except DataError as error:
            raise Unreadable(str(error), MEND) from None


def window_dataset(path: str, window: Window) -> WindowDataset | None:
    """A window as rasterio's dataset; None: only an image file shows all of it. Raises DataError."""
    with _OPEN.use(path) as reader:
        header = reader.header
    return None if header is None else WindowDataset(path, window, header)
