"""Files that GDAL opens: from memory, and by the driver that their first bytes name.

GDAL is shown nothing but the bytes of one file, and no driver but that of its format: some of GDAL's formats name
other files, or hosts to fetch from. What lies beside a file (``.aux.xml``, ``.msk``, ``.ovr``) is not looked at.
"""

import importlib
import io
import logging
import re
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any, BinaryIO, TypeVar

from sat_vg.backbone_finetuning.data.reading.large_images import one_large_at_a_time
from sat_vg.backbone_finetuning.data.reading.tiff_headers import TIFF_MAGIC, require_bounded_tiff
from sat_vg.backbone_finetuning.data.reading.unreadable import COPY_AGAIN, Unreadable
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.printable import one_line

JPEG2000_MAGIC = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_MEMORY_FILE = re.compile(r"'?/vsimem/[^\s':,]+'?[:,]?\s*")
INSTALL = "pip install 'sat_vg[geo]'"

T = TypeVar("T")


@cache
def require_rasterio() -> ModuleType:
    """rasterio, imported.

    Raises:
        ConfigError: it is not installed.
    """
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


def with_gdal(file: BinaryIO, use: Callable[[Any], T], drivers: tuple[str, ...] = ("GTiff", "JP2OpenJPEG")) -> T:
    """What ``use`` makes of a file that GDAL has opened.

    Raises:
        Unreadable: it is of another format, or GDAL cannot read it.
        ConfigError: rasterio is not installed.
    """
    rasterio = require_rasterio()
    require_bounded_tiff(file)
    head, num_bytes = file.read(16), file.seek(0, io.SEEK_END)
    file.seek(0)
    driver = _driver_of(head)
    if driver not in drivers:
        raise Unreadable(
            "it is no TIFF" if head else "the file is empty (0 bytes)", "convert it to GeoTIFF, or remove it"
        )
    try:
        with (
            one_large_at_a_time(num_bytes),
            rasterio.io.MemoryFile(file.read()) as memory,
            memory.open(driver=driver) as source,
        ):
            return use(source)
    except (Unreadable, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - GDAL's have no class in common; hostile files bring about many
        detail = _MEMORY_FILE.sub("", (str(error).splitlines() or [""])[0]) or type(error).__name__
        raise Unreadable(f"it is cut short or damaged ({one_line(detail)})", COPY_AGAIN) from None


def _driver_of(head: bytes) -> str | None:
    if head[:4] in TIFF_MAGIC:
        return "GTiff"
    if head.startswith(JPEG2000_MAGIC):
        return "JP2OpenJPEG"
    return "PNG" if head.startswith(_PNG_MAGIC) else None
