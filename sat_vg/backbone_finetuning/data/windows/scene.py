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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sat_vg.backbone_finetuning.data.reading.decoding import RGB_DECODER
from sat_vg.backbone_finetuning.data.reading.files import mute_warnings
from sat_vg.backbone_finetuning.data.reading.gdal import JPEG2000_MAGIC, require_rasterio, scaling_of
from sat_vg.backbone_finetuning.data.reading.limits import TIFF_MAGIC, refuse_hollow, require_bounded_tiff
from sat_vg.backbone_finetuning.utils.errors import DataError
from sat_vg.backbone_finetuning.utils.file_stamps import stamp_of
from sat_vg.backbone_finetuning.utils.pil_pixels import pixel_step
from sat_vg.backbone_finetuning.utils.printable import one_line
from sat_vg.backbone_finetuning.utils.regular_files import open_regular
from sat_vg.backbone_finetuning.utils.unreadable import COPY_AGAIN, Unreadable

Transform = tuple[float, float, float, float, float, float]
PIXELS: Transform = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
_PHOTOMETRIC = {("red", "green", "blue"): "RGB", ("palette",): "PALETTE"}
_MOST_OPEN = 4
_MOST_BLOCK_BYTES = 2**28  # what GDAL unpacks at a time
_CACHE_MIB = 256  # GDAL's own default is a twentieth of the memory


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
    """What is known of a scene without its pixels.

    Attributes:
        path: of its file.
        width: in pixels.
        height: in pixels.
        bands: their number.
        dtype: of its values.
        crs: rasterio's CRS; None: it has pixel coordinates.
        transform: ``(a, b, c, d, e, f)`` with x = a * column + b * row + c and y = d * column + e * row + f.
        can_miss: pixels can be missing: it has a nodata value, a mask, an alpha band or floating-point values.
        is_picture: it is decoded as a whole.
    """

    path: str
    width: int
    height: int
    bands: int
    dtype: str
    crs: Any
    transform: Transform
    can_miss: bool
    is_picture: bool

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


class Part(NamedTuple):
    """A window's values ``[bands, H, W]``, and where they are there ``[H, W]``; None: everywhere."""

    values: NDArray[Any]
    valid: NDArray[np.bool_] | None


class _Reader(Protocol):
    scene: Scene

    def read(self, window: Window, step: int = 1) -> Part:
        """The values; every ``step``-th row and column."""

    def valid(self, window: Window) -> NDArray[np.bool_] | None:
        """Where they are there ``[H, W]``; None: everywhere."""

    def encode(self, part: Part, window: Window, is_compressed: bool) -> bytes:
        """An image file of a part."""

    def close(self) -> None:
        """Let go of the file."""


class _Picture:
    """A picture in memory, as 8-bit RGB."""

    def __init__(self, path: str) -> None:
        width, height = _picture_size(path)
        if pixel_step(width, height) > 1:
            raise DataError(
                f"the scene {path!r} has {width} x {height} pixels, too many for a picture that is decoded as a "
                "whole "
                f"(the limit is {Image.MAX_IMAGE_PIXELS} pixels); write it as a tiled GeoTIFF"
            )
        self._pixels = RGB_DECODER.read(path).numpy()
        _, height, width = self._pixels.shape
        self.scene = Scene(path, width, height, 3, "uint8", None, PIXELS, can_miss=False, is_picture=True)

    def read(self, window: Window, step: int = 1) -> Part:
        column, row, width, height = window
        return Part(self._pixels[:, row : row + height : step, column : column + width : step], None)

    def valid(self, window: Window) -> None:
        return None

    def encode(self, part: Part, window: Window, is_compressed: bool) -> bytes:
        from io import BytesIO

        file, pixels = BytesIO(), np.ascontiguousarray(part.values.transpose(1, 2, 0))
        Image.fromarray(pixels).save(file, "PNG" if is_compressed else "BMP")
        return file.getvalue()

    def close(self) -> None:
        pass


def _picture_size(path: str) -> tuple[int, int]:
    try:
        with open_regular(path) as file, Image.open(file) as image:
            width, height = image.size
            return width, height
    except (OSError, ValueError, Image.DecompressionBombError):  # decoding says what is wrong
        return 1, 1


class _Raster:
    """A GeoTIFF or JPEG 2000, of which GDAL reads windows."""

    def __init__(self, path: str, driver: str, num_bytes: int) -> None:
        rasterio = require_rasterio()
        os.environ.setdefault("GDAL_CACHEMAX", str(_CACHE_MIB))
        with explained(path), rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"):
            self._source = rasterio.open(Path(path).absolute(), driver=driver, sharing=False)
        source = self._source
        dtype, kinds = source.dtypes[0], {flag.name for flags in source.mask_flag_enums for flag in flags}
        self._require_sound(path, num_bytes)
        can_miss = kinds != {"all_valid"} or np.dtype(dtype).kind == "f"
        self.scene = Scene(
            path, source.width, source.height, source.count, dtype, source.crs, tuple(source.transform)[:6],
            can_miss, is_picture=False,
        )  # fmt: skip
        self._colours = [colour.name for colour in source.colorinterp]
        self._has_mask = "per_dataset" in kinds and "alpha" not in kinds
        self._tags = scaling_of(source), source.descriptions
        self._palette = source.colormap(1) if self._colours[0] == "palette" else None
        self._profile = {
            "driver": "GTiff", "count": source.count, "dtype": dtype, "crs": source.crs, "interleave": "pixel",
            "photometric": _PHOTOMETRIC.get(tuple(self._colours[:3]), "MINISBLACK"),
            "alpha": "YES" if "alpha" in self._colours else "NO",
            **({"nodata": source.nodata} if _fits(source.nodata, dtype) else {}),
        }  # fmt: skip

    def _require_sound(self, path: str, num_bytes: int) -> None:
        source = self._source
        if len(set(source.dtypes)) > 1 or np.dtype(source.dtypes[0]).kind not in "uif":
            kinds = " and ".join(sorted(set(source.dtypes)))
            raise DataError(f"the values of the scene {path!r} are {kinds}; convert it to integers or float32")
        item_bytes = np.dtype(source.dtypes[0]).itemsize
        try:
            refuse_hollow(num_bytes, source.width, source.height, source.count * item_bytes)
        except Unreadable as problem:
            raise DataError(f"the scene {path!r} cannot be read: {problem.reason}; write it anew") from None
        rows, columns = source.block_shapes[0]
        is_by_pixel = source.interleaving is None or source.interleaving.name == "pixel"
        block = rows * columns * item_bytes * (source.count if is_by_pixel else 1)
        if block > _MOST_BLOCK_BYTES:
            raise DataError(
                f"the scene {path!r} lies in blocks of {block // 2**20} MiB, which would be unpacked for every "
                "window "
                f"(the limit is {_MOST_BLOCK_BYTES // 2**20}); write it in tiles: rio convert --co tiled=yes IN OUT"
            )
        a, b, _, d, e, _ = tuple(source.transform)[:6]
        if not np.isfinite(tuple(source.transform)[:6]).all() or a * e - b * d == 0:
            raise DataError(f"the scene {path!r} has a transform without size ({a:g}, {b:g}, {d:g}, {e:g}); mend it")
        if source.crs is None and source.gcps[0]:
            raise DataError(
                f"the scene {path!r} is placed by ground control points and not yet in a CRS; rectify it: rio warp "
                "--dst-crs EPSG:4326 IN OUT"
            )

    def read(self, window: Window, step: int = 1) -> Part:
        _column, _row, width, height = window
        shape = (self.scene.bands, -(-height // step), -(-width // step))
        values = self._source.read(window=_as_rasterio(window), out_shape=shape)
        valid = self.valid(window)
        if valid is not None and step > 1:
            valid = valid[::step, ::step]
        return Part(values, valid)

    def valid(self, window: Window) -> NDArray[np.bool_] | None:
        if not self.scene.can_miss:
            return None
        valid = np.asarray(self._source.dataset_mask(window=_as_rasterio(window)) > 0, bool)
        if np.dtype(self.scene.dtype).kind == "f":
            valid &= np.isfinite(self._source.read(window=_as_rasterio(window))).any(axis=0)
        return valid

    def encode(self, part: Part, window: Window, is_compressed: bool) -> bytes:
        rasterio = require_rasterio()
        scaling, descriptions = self._tags
        place = rasterio.Affine(*self.scene.transform_of(window))
        how = {"compress": "deflate"} if is_compressed else {}
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.MemoryFile() as memory:
            with memory.open(
                **self._profile, **how, width=window.width, height=window.height, transform=place
            ) as file:
                if self._palette is not None:
                    file.write_colormap(1, self._palette)
                if set(scaling) != {(1.0, 0.0)}:
                    file.scales, file.offsets = zip(*scaling, strict=True)
                for number, text in enumerate(descriptions, 1):
                    if text:
                        file.set_band_description(number, text)
                file.write(part.values)
                if self._has_mask and part.valid is not None:
                    file.write_mask(part.valid)
            memory.seek(0)
            return bytes(memory.read())

    def close(self) -> None:
        self._source.close()


def _as_rasterio(window: Window) -> Any:
    return import_module("rasterio.windows").Window(*window)


def _fits(nodata: float | None, dtype: str) -> bool:
    """Whether a nodata value can be declared for such values."""
    if nodata is None or np.dtype(dtype).kind == "f":
        return nodata is not None
    limits = np.iinfo(dtype)
    return bool(np.isfinite(nodata)) and limits.min <= nodata <= limits.max


@contextmanager
def explained(path: str) -> Iterator[None]:
    """Turn rasterio's errors on a damaged scene into one for the user.

    Raises:
        DataError: in place of them.
    """
    rasterio = require_rasterio()
    try:
        mute_warnings()
        yield
    except rasterio.errors.RasterioError as error:
        detail = one_line((str(error.__cause__ or error).splitlines() or [""])[0])
        raise DataError(f"the scene {path!r} is cut short or damaged ({detail}); {COPY_AGAIN}") from None


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
        self._readers: OrderedDict[str, tuple[str, _Reader]] = OrderedDict()

    @contextmanager
    def use(self, path: str) -> Iterator[_Reader]:
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
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"the scene {path!r} cannot be opened ({reason}); check the path") from None


def _reader_of(path: str) -> _Reader:
    try:
        with open_regular(path) as file:
            head, num_bytes = file.read(16), file.seek(0, os.SEEK_END)
            require_bounded_tiff(file)
    except Unreadable as problem:
        raise DataError(f"the scene {path!r} cannot be read: {problem.reason}; {problem.remedy}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"the scene {path!r} cannot be opened ({reason}); give a file") from None
    if head[:4] in TIFF_MAGIC:
        return _Raster(path, "GTiff", num_bytes)
    if head.startswith(JPEG2000_MAGIC):
        return _Raster(path, "JP2OpenJPEG", num_bytes)
    return _Picture(path)


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
    part: Part = _used(path, lambda reader: reader.read(window, step))
    return part


def valid_pixels(path: str, window: Window) -> NDArray[np.bool_] | None:
    """Where a window has values ``[H, W]``; None: everywhere. Raises DataError where the scene is damaged."""
    valid: NDArray[np.bool_] | None = _used(path, lambda reader: reader.valid(window))
    return valid


def encode_window(path: str, window: Window, is_compressed: bool = False) -> bytes | None:
    """A window as an image file with its coordinates, bands, nodata and scaling; None where it has no valid pixel.

    Args:
        path: of the scene.
        window: in its pixels.
        is_compressed: without loss; the pixels are the same.

    Raises:
        DataError: the scene is damaged.
    """
    with _OPEN.use(path) as reader:
        part = read_part(path, window)
    if part.valid is not None and not part.valid.any():
        return None
    return reader.encode(part, window, is_compressed)


def _used(path: str, use: Callable[[_Reader], Any]) -> Any:
    with _OPEN.use(path) as reader:
        if reader.scene.is_picture:
            return use(reader)
        with explained(path):
            return use(reader)
