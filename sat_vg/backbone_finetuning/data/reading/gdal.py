"""Files that GDAL opens, and their colours: from memory, by the driver that their first bytes name.

GDAL gets the bytes of one file and the driver of its format alone: some of GDAL's formats name
other files, or hosts to fetch from. What lies beside a file (``.aux.xml``, ``.msk``, ``.ovr``) is not read.
"""

import importlib
import io
import logging
import math
import re
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from sat_vg.backbone_finetuning.data.reading import limits
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.pil_pixels import pixel_step
from sat_vg.backbone_finetuning.utils.printable import one_line
from sat_vg.backbone_finetuning.utils.unreadable import COPY_AGAIN, Unreadable

JPEG2000_MAGIC = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_MEMORY_FILE = re.compile(r"'?/vsimem/[^\s':,]+'?[:,]?\s*")
INSTALL = "pip install 'sat_vg[geo]'"
_LEAST_BLANK = 0.01  # share of an image's pixels
_NEAR_ZERO = 0.05  # of a band's median: what a black border hardly has and dark ground has
_MOST_NEAR_ZERO = 1 / 3  # as many pixels near 0 as are 0: then dark ground is more likely
_UNSIGNED = ("uint8", "uint16")
_TURNS = {
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.transpose(1, 0, 2),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: image[::-1, ::-1].transpose(1, 0, 2),
    8: lambda image: np.rot90(image, 1),
}

T = TypeVar("T")


@cache
def require_rasterio() -> ModuleType:
    """rasterio, imported. Raises ConfigError where it is not installed."""
    try:
        rasterio = importlib.import_module("rasterio")
    except ImportError as error:
        raise ConfigError(
            f"the bands of GeoTIFFs are read with rasterio, which cannot be imported ({error}); install it with "
            f"{INSTALL}"
        ) from error
    logging.getLogger("rasterio").setLevel(logging.CRITICAL)  # what matters of GDAL's messages is an error here
    return rasterio


def has_rasterio() -> bool:
    """Whether rasterio can be imported."""
    try:
        require_rasterio()
    except ConfigError:
        return False
    return True


def gdal_versions() -> str:
    """What the values of an image depend on beside its file. Raises ConfigError where rasterio is not installed."""
    rasterio = require_rasterio()
    return f"rasterio {rasterio.__version__}, GDAL {rasterio.__gdal_version__}"


def with_gdal(file: BinaryIO, use: Callable[[Any, int], T], drivers: tuple[str, ...] = ("GTiff", "JP2OpenJPEG")) -> T:
    """What ``use`` makes of a file that GDAL has opened, given rasterio's object and the number of the file's bytes.

    Raises:
        Unreadable: it is of another format, or GDAL cannot read it.
        ConfigError: rasterio is not installed.
    """
    rasterio = require_rasterio()
    limits.require_bounded_tiff(file)
    head, num_bytes = file.read(16), file.seek(0, io.SEEK_END)
    file.seek(0)
    magics = {"GTiff": limits.TIFF_MAGIC, "JP2OpenJPEG": JPEG2000_MAGIC, "PNG": (_PNG_MAGIC,)}
    driver = next((name for name, magic in magics.items() if head.startswith(magic)), None)
    if driver not in drivers:
        raise Unreadable(
            "it is no TIFF" if head else "the file is empty (0 bytes)", "convert it to GeoTIFF, or remove it"
        )
    try:
        with (
            limits.one_large_at_a_time(num_bytes),
            rasterio.io.MemoryFile(file.read()) as memory,
            memory.open(driver=driver) as source,
        ):
            return use(source, num_bytes)
    except (Unreadable, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - GDAL's have no class in common; hostile files bring about many
        detail = _MEMORY_FILE.sub("", (str(error).splitlines() or [""])[0]) or type(error).__name__
        raise Unreadable(f"it is cut short or damaged ({one_line(detail)})", COPY_AGAIN) from None


def scaling_of(source: Any) -> tuple[tuple[float, float], ...]:
    """Scale and offset of each band of an image."""
    return tuple(
        (float(scale), float(offset) + 0.0) for scale, offset in zip(source.scales, source.offsets, strict=True)
    )


def block_bytes(source: Any) -> int:
    """What GDAL unpacks at a time of an image."""
    is_by_pixel = source.interleaving is None or source.interleaving.name == "pixel"
    num_values = math.prod(source.block_shapes[0]) * (source.count if is_by_pixel else 1)
    return int(num_values * np.dtype(source.dtypes[0]).itemsize)


class Colours(NamedTuple):
    """The colours of an image as they are stored."""

    values: NDArray[Any]  # uint8 or uint16 ``[H, W, 3]``
    alpha: NDArray[Any] | None  # of the same type ``[H, W]``; None: there is none
    bits: int  # of each value

    def as_bytes(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        """Colours and alpha as 8 bits: the highest eight, or spread over all."""
        return _eight_bits(self.values, self.bits), None if self.alpha is None else _eight_bits(self.alpha, self.bits)


def colours_of(source: Any, num_bytes: int, inverts: bool) -> Colours:
    """Red, green and blue of an image that rasterio has opened; grey is repeated, a palette gives its colours.

    ``num_bytes`` is the size of its file; with ``inverts`` its largest value is black.

    Raises:
        Unreadable: it is too large, or its values are not unsigned integers of 16 bits at the most.
    """
    limits.refuse_bomb(source.width, source.height)
    limits.refuse_hollow(
        num_bytes, source.width, source.height, sum(np.dtype(kind).itemsize for kind in source.dtypes)
    )
    step = pixel_step(source.width, source.height)
    limits.tell_reduced(source.width, source.height, step)
    with limits.one_large_at_a_time(source.width * source.height):
        return _colours(source, inverts, step)


def _colours(source: Any, inverts: bool, step: int) -> Colours:
    kinds = [kind.name for kind in source.colorinterp]
    if set(source.dtypes) - set(_UNSIGNED) or source.count > 4:
        raise Unreadable(f"it has {source.count} bands of {' and '.join(sorted(set(source.dtypes)))}")
    values = source.read(out_shape=(source.count, -(-source.height // step), -(-source.width // step)))
    bits = int(source.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", 8 * values.dtype.itemsize))
    if kinds[0] == "palette":
        palette = source.colormap(1)
        table = np.zeros((1 << (8 * values.dtype.itemsize), 3), np.uint8)
        for index, colour in palette.items():
            table[index] = colour[:3]
        return Colours(table[values[0]], None, 8)
    alpha = values[kinds.index("alpha")] if "alpha" in kinds else None
    colours = [band for band, kind in zip(values, kinds, strict=True) if kind != "alpha"]
    wanted = colours[:3] if len(colours) >= 3 else [colours[0]] * 3
    stacked = np.stack(wanted, axis=-1)
    return Colours(((1 << bits) - 1) - stacked if inverts else stacked, alpha, bits)


def turned(image: NDArray[Any], orientation: int) -> NDArray[Any]:
    """``[H, W, C]`` turned by an EXIF orientation."""
    turn = _TURNS.get(orientation)
    upright: NDArray[Any] = image if turn is None else np.ascontiguousarray(turn(image))
    return upright


def _eight_bits(values: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    if bits > 8:
        highest: NDArray[np.uint8] = np.minimum(values >> (bits - 8), 255).astype(np.uint8)
        return highest
    if bits == 8:
        return values.astype(np.uint8)
    largest = (1 << bits) - 1
    spread: NDArray[np.uint8] = (np.minimum(values, largest).astype(np.uint16) * 255 // largest).astype(np.uint8)
    return spread


def blank_percent(stored: NDArray[Any], missing: NDArray[np.bool_]) -> int:
    """Percentage of the pixels that are 0 in all bands, where nodata is more likely than dark ground; else 0.

    ``stored`` are the values as they stand in the file ``[C, H, W]``, ``missing`` says where they are known to be
    missing ``[C, H, W]`` or ``[1, H, W]``.
    """
    blank: NDArray[np.bool_] = ((stored == 0) & ~missing).all(axis=0)
    count = int(np.count_nonzero(blank))
    if count < _LEAST_BLANK * blank.size:
        return 0
    others = ~(blank | missing.any(axis=0))
    if others.any():
        near = others.copy()
        for band in stored:  # one at a time, as each is held twice
            magnitudes = np.abs(band.astype(np.float64))
            limit = _NEAR_ZERO * np.median(magnitudes[others])
            near &= magnitudes <= (limit if band.dtype.kind == "f" else max(limit, 2))
        if np.count_nonzero(near) > _MOST_NEAR_ZERO * count:
            return 0
    return max(1, round(100 * count / blank.size))
