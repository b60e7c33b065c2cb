"""Values that stand for "no value" though no tag of the file says so."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_USUAL = (-999.0, -9999.0, -99999.0, -32767.0, -32768.0, 1e20)  # where they are far from all other values
_BEYOND_ALL = 1e30  # no quantity is as large: -3.4e38, 9.97e36 and the like


def holds(dtype: Any, value: float) -> bool:
    """Whether values of a type can be ``value``."""
    if np.dtype(dtype).kind == "f":
        return True
    limits = np.iinfo(dtype)
    return float(value).is_integer() and limits.min <= value <= limits.max


def equals(stored: NDArray[Any], value: float) -> NDArray[np.bool_]:
    """Where values are ``value``; floating-point ones to five digits, as a value that was typed has no more."""
    if stored.dtype.kind == "f":
        return np.asarray(np.isclose(stored, value, rtol=1e-5, atol=0), bool)
    return np.asarray(stored == value, bool)


def take_out_fills(stored: NDArray[Any], values: NDArray[np.float32]) -> tuple[float, ...]:
    """Make fill values that no tag declares NaN in ``values``; returns which they are.

    These are magnitudes of 1e30 and above, and the usual ones (-9999, -32768 …) where nothing else in the band is
    even half as far from 0 on their side. Unsigned integers have none.

    Args:
        stored: values as they stand in the file ``[C, H, W]``.
        values: the same, scaled; NaN where they are missing already.
    """
    if stored.dtype.kind == "u":
        return ()
    found: set[float] = set()
    for band, out in zip(stored, values, strict=True):
        if band.dtype.kind == "f":
            beyond = (np.abs(band) >= _BEYOND_ALL) & np.isfinite(band)
            found.update(np.unique(band[beyond])[:2].astype(float).tolist())
            out[beyond] = np.nan
        for usual in (value for value in _USUAL if holds(band.dtype, value)):
            fill, there = band.dtype.type(usual), band[~np.isnan(out)]
            if not there.size or fill != (there.min() if usual < 0 else there.max()):
                continue
            others = there[there != fill]
            if not others.size or (others.min() > usual / 2 if usual < 0 else others.max() < usual / 2):
                found.add(usual)
                out[band == fill] = np.nan
    return tuple(sorted(found))
