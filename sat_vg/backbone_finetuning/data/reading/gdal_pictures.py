"""8-bit RGB of images that GDAL reads and Pillow does not."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sat_vg.backbone_finetuning.data.reading.unreadable import Unreadable

_OPAQUE = 3  # times as many full values as values in between: alpha, with soft edges
_LOSSY = 5  # levels by which lossy compression may move 0 or 255
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


class Colours(NamedTuple):
    """The colours of an image as they are stored.

    Attributes:
        values: uint8 or uint16 ``[H, W, 3]``.
        alpha: of the same type ``[H, W]``; None: there is none.
        bits: of each value.
    """

    values: NDArray[Any]
    alpha: NDArray[Any] | None
    bits: int

    def as_bytes(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        """Colours and alpha as 8 bits: the highest eight, or spread over all."""
        return _eight_bits(self.values, self.bits), None if self.alpha is None else _eight_bits(self.alpha, self.bits)


def colours_of(source: Any, inverts: bool = False, step: int = 1) -> Colours:
    """Red, green and blue of an image that rasterio has opened; grey is repeated, a palette gives its colours.

    Args:
        source: it.
        inverts: its largest value is black.
        step: each so-manieth row and column is read.

    Raises:
        Unreadable: its values are not unsigned integers of 16 bits at the most.
    """
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


def upright(image: NDArray[Any], orientation: int) -> NDArray[Any]:
    """``[H, W, C]`` turned by an EXIF orientation."""
    turn = _TURNS.get(orientation)
    turned: NDArray[Any] = image if turn is None else np.ascontiguousarray(turn(image))
    return turned


def is_transparency(alpha: NDArray[Any], full: float = 255, is_lossy: bool = False) -> bool:
    """Whether values can be those of an alpha band, and not of near infrared that is marked so: nearly binary.

    Args:
        alpha: the band.
        full: its largest possible value.
        is_lossy: it was compressed with losses.
    """
    slack = _LOSSY if is_lossy else 0
    opaque, empty = np.count_nonzero(alpha >= full - slack), np.count_nonzero(alpha <= slack)
    return bool(opaque > 0 and opaque >= _OPAQUE * (alpha.size - opaque - empty))


def _eight_bits(values: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    if bits > 8:
        highest: NDArray[np.uint8] = np.minimum(values >> (bits - 8), 255).astype(np.uint8)
        return highest
    if bits == 8:
        return values.astype(np.uint8)
    largest = (1 << bits) - 1
    spread: NDArray[np.uint8] = (np.minimum(values, largest).astype(np.uint16) * 255 // largest).astype(np.uint8)
    return spread
