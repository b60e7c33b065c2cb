"""Mean and deviation of each band over the training images, measured once and remembered by their content."""

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sat_vg.backbone_finetuning.data.checks import run_in_order
from sat_vg.backbone_finetuning.data.decoding import Decoder
from sat_vg.backbone_finetuning.utils.bounded_cache import BoundedCache, NoRoom
from sat_vg.backbone_finetuning.utils.errors import DataError
from sat_vg.backbone_finetuning.utils.terminal import progress

_FORMAT = "sat_vg band statistics 1"  # raise it with any change of what is measured
_FILE = "statistics.json"
_FILE_BYTES = 2**16
_RESOLUTION = 1e-7  # of float32: a deviation below this share of the mean is rounding


@dataclass(frozen=True)
class Moments:
    """By band, of the values that are not missing; all float64 ``[C]``.

    Attributes:
        count: how many there are.
        mean: of them.
        squares: their squared distances from the mean, added up.
    """

    count: NDArray[np.float64]
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]


class BandStatistics(NamedTuple):
    """Mean and population deviation by band, in the files' own units.

    Attributes:
        mean: of all values that are not missing.
        std: of the same.
        note: a line for the user on what was done.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    note: str


def moments_of(image: Tensor) -> Moments:
    """Of one image, float32 ``[C, H, W]``; NaN is missing. In double precision."""
    rows = []
    for band in image.flatten(1).numpy():  # one at a time, as each is held four times over
        values = band[~np.isnan(band)].astype(np.float64)
        mean = values.mean() if len(values) else 0.0
        rows.append((len(values), mean, np.square(values - mean).sum()))
    return Moments(*np.array(rows, np.float64).T)


def combined(first: Moments, second: Moments) -> Moments:
    """Of the values of both, without the cancellation of sums of squares (Chan, Golub & LeVeque, 1983)."""
    count = first.count + second.count
    share = np.divide(second.count, count, out=np.zeros_like(count), where=count > 0)
    apart = second.mean - first.mean
    squares = first.squares + second.squares + np.square(apart) * first.count * share
    return Moments(count, first.mean + apart * share, squares)


def measure_bands(
    paths: Sequence[str], contents: Mapping[str, int], names: Sequence[str], decoder: Decoder, cache: BoundedCache
) -> BandStatistics:
    """Mean and deviation of each band, out of the cache or measured in one pass over the images.

    Args:
        paths: training images.
        contents: fingerprints of their values by path.
        names: of the bands, for messages.
        decoder: gives float32 ``[C, H, W]``, NaN where a value is missing.
        cache: where they are remembered.

    Raises:
        DataError: a band has no value, or only one, in all images; or an image cannot be read any more.
    """
    began = time.monotonic()
    key = _key(paths, contents, decoder)
    found = _find(cache, key, len(names))
    if found is not None:
        return BandStatistics(*found, f"band statistics of {len(paths)} training images: found in {cache.folder}")
    total: Moments | None = None
    with progress(total=len(paths), desc="band statistics", unit="image") as bar:
        for few in run_in_order(paths, lambda path: moments_of(decoder.read(path))):
            for moments in few:  # in the order of the paths, so that rounding does not depend on threads
                total = moments if total is None else combined(total, moments)
            bar.update(len(few))
    assert total is not None, "a training has images"
    _require_values(total, names)
    mean, std = (tuple(map(float, values)) for values in (total.mean, np.sqrt(total.squares / total.count)))
    _keep(cache, key, mean, std)
    seconds = time.monotonic() - began
    return BandStatistics(mean, std, f"band statistics of {len(paths)} training images: made in {seconds:.1f} s")


def _require_values(total: Moments, names: Sequence[str]) -> None:
    for name, count, mean, squares in zip(names, total.count, total.mean, total.squares, strict=True):
        if not count:
            raise DataError(
                f"band {name!r} has no value in any training image: all are nodata; leave it out of bands"
            )
        if squares <= count * (_RESOLUTION * mean) ** 2:
            raise DataError(
                f"band {name!r} is {mean:g} at every pixel of the training images, so it tells nothing; leave it out "
                "of bands"
            )


def _key(paths: Sequence[str], contents: Mapping[str, int], decoder: Decoder) -> str:
    digest = hashlib.blake2b(f"{_FORMAT}; numpy {np.__version__}; {decoder.key}".encode(), digest_size=16)
    digest.update(np.array([contents[path] for path in paths], "<i8").tobytes())
    return digest.hexdigest()


def _find(cache: BoundedCache, key: str, count: int) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    folder = cache.find(key)
    if folder is None:
        return None
    try:
        with (folder / _FILE).open("rb") as file:
            content = json.loads(file.read(_FILE_BYTES))
        mean, std = (tuple(map(float, content[name])) for name in ("mean", "std"))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        cache.remove(key)
        return None
    sound = len(mean) == len(std) == count and all(map(math.isfinite, (*mean, *std))) and min(std) > 0
    return (mean, std) if sound else None


def _keep(cache: BoundedCache, key: str, mean: Sequence[float], std: Sequence[float]) -> None:
    try:
        with cache.building(key, _FILE_BYTES) as folder:
            if not isinstance(folder, NoRoom):
                (folder / _FILE).write_text(json.dumps({"mean": mean, "std": std}))
    except OSError:
        return  # a read-only or full disk costs the next run time, nothing more
