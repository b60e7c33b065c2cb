"""Readers of scenes: a raster of which GDAL reads windows, or a picture that is decoded as a whole."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sat_vg.backbone_finetuning.data.reading.decoding import RGB_DECODER
from sat_vg.backbone_finetuning.data.reading.files import mute_warnings
from sat_vg.backbone_finetuning.data.reading.gdal import block_bytes, require_rasterio, scaling_of
from sat_vg.backbone_finetuning.data.reading.limits import refuse_hollow
from sat_vg.backbone_finetuning.data.windows.scene import PIXELS, Part, Scene, Window, rasterio_window
from sat_vg.backbone_finetuning.utils.errors import DataError
from sat_vg.backbone_finetuning.utils.pil_pixels import pixel_step
from sat_vg.backbone_finetuning.utils.printable import one_line
from sat_vg.backbone_finetuning.utils.regular_files import open_regular
from sat_vg.backbone_finetuning.utils.unreadable import COPY_AGAIN, Unreadable

_PHOTOMETRIC = {("red", "green", "blue"): "RGB", ("palette",): "PALETTE"}
_MOST_BLOCK_BYTES = 2**28  # what GDAL unpacks at a time
_HEADER = (
    "count", "dtypes", "nodatavals", "descriptions", "scales", "offsets", "mask_flag_enums", "colorinterp",
    "block_shapes", "interleaving",
)  # fmt: skip
_CACHE_MIB = 256  # GDAL's own default is a twentieth of the memory


class Picture:
    """A picture in memory, as 8-bit RGB; its methods are those of ``Raster``."""

    header = None

    def __init__(self, path: str) -> None:
        width, height = _picture_size(path)
        if pixel_step(width, height) > 1:
            raise DataError(
                f"the scene {path!r} has {width} x {height} pixels, too many for a picture that is decoded as a "
                f"whole (the limit is {Image.MAX_IMAGE_PIXELS} pixels); write it as a tiled GeoTIFF"
            )
        self._pixels = RGB_DECODER.read(path).numpy()
        _, height, width = self._pixels.shape
        self.scene = Scene(
            path, width, height, 3, "uint8", None, PIXELS, can_miss=False, is_picture=True, is_rgb=True
        )

    def read(self, window: Window, step: int = 1) -> Part:
        """The values; every ``step``-th row and column."""
        column, row, width, height = window
        return Part(self._pixels[:, row : row + height : step, column : column + width : step], None)

    def valid(self, window: Window) -> None:
        """Everywhere."""

    def encode(self, part: Part, window: Window, is_compressed: bool) -> bytes:
        """A PNG or BMP of a part."""
        file, pixels = BytesIO(), np.ascontiguousarray(part.values.transpose(1, 2, 0))
        Image.fromarray(pixels).save(file, "PNG" if is_compressed else "BMP")
        return file.getvalue()

    def close(self) -> None:
        """Nothing is open."""


def _picture_size(path: str) -> tuple[int, int]:
    try:
        with open_regular(path) as file, Image.open(file) as image:
            width, height = image.size
            return width, height
    except (OSError, ValueError, Image.DecompressionBombError):  # decoding says what is wrong
        return 1, 1


class Raster:
    """A GeoTIFF or JPEG 2000, of which GDAL reads windows."""

    def __init__(self, path: str, driver: str, num_bytes: int) -> None:
        rasterio = require_rasterio()
        os.environ.setdefault("GDAL_CACHEMAX", str(_CACHE_MIB))
        with explained(path), rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"):
            self.source = rasterio.open(Path(path).absolute(), driver=driver, sharing=False)
        source = self.source
        dtype, kinds = source.dtypes[0], {flag.name for flags in source.mask_flag_enums for flag in flags}
        self._require_sound(path, num_bytes)
        can_miss = kinds != {"all_valid"} or np.dtype(dtype).kind == "f"
        self._colours = [colour.name for colour in source.colorinterp]
        self._has_mask = "per_dataset" in kinds and "alpha" not in kinds
        self._tags = scaling_of(source), source.descriptions
        is_rgb = dtype == "uint8" and self._colours == ["red", "green", "blue"] and not self._has_mask
        is_bare = set(self._tags[0]) == {(1.0, 0.0)} and not any(source.descriptions)
        self.scene = Scene(
            path, source.width, source.height, source.count, dtype, source.crs, tuple(source.transform)[:6],
            can_miss, is_picture=False, is_rgb=is_rgb and is_bare,
        )  # fmt: skip
        self._palette = source.colormap(1) if self._colours[0] == "palette" else None
        self._profile = {
            "driver": "GTiff", "count": source.count, "dtype": dtype, "crs": source.crs, "interleave": "pixel",
            "photometric": _PHOTOMETRIC.get(tuple(self._colours[:3]), "MINISBLACK"),
            "alpha": "YES" if "alpha" in self._colours else "NO",
            **({"nodata": source.nodata} if _fits(source.nodata, dtype) else {}),
        }  # fmt: skip
        is_told = source.nodata is None or "nodata" in self._profile  # else the image file will not declare it
        # What rasterio says of that image file, by attribute; None: not all of it.
        self.header = {name: getattr(source, name) for name in _HEADER} if is_told else None

    def _require_sound(self, path: str, num_bytes: int) -> None:
        source = self.source
        if len(set(source.dtypes)) > 1 or np.dtype(source.dtypes[0]).kind not in "uif":
            kinds = " and ".join(sorted(set(source.dtypes)))
            raise DataError(f"the values of the scene {path!r} are {kinds}; convert it to integers or float32")
        try:
            pixel_bytes = source.count * np.dtype(source.dtypes[0]).itemsize
            refuse_hollow(num_bytes, source.width, source.height, pixel_bytes)
        except Unreadable as problem:
            raise DataError(f"the scene {path!r} cannot be read: {problem.reason}; write it anew") from None
        block = block_bytes(source)
        if block > _MOST_BLOCK_BYTES:
            raise DataError(
                f"the scene {path!r} lies in blocks of {block // 2**20} MiB, which would be unpacked for every "
                f"window (the limit is {_MOST_BLOCK_BYTES // 2**20}); write it in tiles: rio convert --co tiled=yes "
                "IN OUT"
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
        """The values; every ``step``-th row and column."""
        _column, _row, width, height = window
        shape = (self.scene.bands, -(-height // step), -(-width // step))
        with explained(self.scene.path):
            values = self.source.read(window=rasterio_window(window), out_shape=shape)
        valid = self.valid(window)
        if valid is not None and step > 1:
            valid = valid[::step, ::step]
        return Part(values, valid)

    def valid(self, window: Window) -> NDArray[np.bool_] | None:
        """Where values are there ``[H, W]``; None: everywhere."""
        if not self.scene.can_miss:
            return None
        with explained(self.scene.path):
            valid = np.asarray(self.source.dataset_mask(window=rasterio_window(window)) > 0, bool)
            if np.dtype(self.scene.dtype).kind == "f":
                valid &= np.isfinite(self.source.read(window=rasterio_window(window))).any(axis=0)
        return valid

    def encode(self, part: Part, window: Window, is_compressed: bool) -> bytes:
        """A GeoTIFF of a part, with its coordinates, bands, nodata and scaling."""
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
        """Let go of the file."""
        self.source.close()


def _fits(nodata: float | None, dtype: str) -> bool:
    """Whether a nodata value can be declared for such values."""
    if nodata is None or np.dtype(dtype).kind == "f":
        return nodata is not None
    limits = np.iinfo(dtype)
    return bool(np.isfinite(nodata)) and limits.min <= nodata <= limits.max


Reader = Picture | Raster


@contextmanager
def explained(path: str) -> Iterator[None]:
    """Turn rasterio's errors on a damaged scene into one for the user. Raises DataError in place of them."""
    rasterio = require_rasterio()
    try:
        mute_warnings()
        yield
    except rasterio.errors.RasterioError as error:
        detail = one_line((str(error.__cause__ or error).splitlines() or [""])[0])
        raise DataError(f"the scene {path!r} is cut short or damaged ({detail}); {COPY_AGAIN}") from None
