"""Mean and standard deviation of each band over the training images, measured once and cached by their content.

They are robust against a few invalid values: what lies more than ``_FARTHEST`` robust deviations from the
median is left out, with a warning. No value of a sensor lies so far out; one patch of 1e25 would dominate them.
"""

import hashlib
import json
import math
import time
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sat_vg.backbone_finetuning.data.reading.decoder import Decoder
from sat_vg.backbone_finetuning.data.reading.threads import run_in_order
from sat_vg.backbone_finetuning.utils.bounded_cache import BoundedCache, NoRoom
from sat_vg.backbone_finetuning.utils.errors import DataError
from sat_vg.backbone_finetuning.utils.json_reading import read_json
from sat_vg.backbone_finetuning.utils.terminal import progress

_FORMAT = "sat_vg band statistics 3"  # raise it with any change of what is measured
_FILE = "statistics.json"
_FILE_BYTES = 2**16
_FARTHEST = 1e4
_LISTED = 3
_KEPT = 20  # images with values that were left out that are remembered
_FRACTIONS, _STORED = 2.0, 100.0  # the largest value of an image in fractions of 1, and the median of stored numbers
_RESOLUTION = 1e-7  # of float32: a deviation below this share of the mean is rounding


@dataclass(frozen=True)
class Moments:
    """By band, of the values that are not missing; all float64 ``[C]``."""

    count: NDArray[np.float64]  # how many there are
    mean: NDArray[np.float64]  # of them
    squares: NDArray[np.float64]  # their squared distances from the mean, added up


class BandStatistics(NamedTuple):
    """Mean and population deviation by band, in the files' own units."""

    mean: tuple[float, ...]  # of all values that are not missing
    std: tuple[float, ...]  # of the same
    note: str  # a line for the user on what was done
    warnings: tuple[str, ...] = ()  # lines on values that were left out


class _Outlier(NamedTuple):
    """A value of an image that was left out of the statistics, and how many images have such in this band."""

    band: int
    value: float
    image: int
    images: int


class _Fractions(NamedTuple):
    """Images that seem to be in fractions of 1 among others that are not."""

    largest: float  # value in them
    usual: float  # value in the others
    images: list[int]  # the first few
    num_images: int


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
    """Mean and deviation of each band of training images, out of the cache or measured in one pass over them.

    ``contents`` are fingerprints of the images by path, ``names`` those of the bands, for messages. The decoder gives
    float32 ``[C, H, W]``, NaN where a value is missing.

    Raises:
        DataError: a band has no value, or only one, in all images; or an image cannot be read any more.
    """
    began = time.monotonic()
    key = _key(paths, contents, decoder)
    found = cache.load(key, lambda folder: _read(folder, len(names), len(paths)))
    if found is not None:
        mean, std, known, fractions = found
        note = f"band statistics of {len(paths)} training images: found in {cache.folder}"
        return BandStatistics(mean, std, note, _about(known, fractions, paths, names))
    bar = progress(total=len(paths), desc="band statistics", unit="image")
    measured = list(run_in_order(paths, lambda path: _measure(decoder.read(path)), bar=bar))
    low, high = _bounds(measured)
    outliers: list[_Outlier] = []
    total: Moments | None = None
    # In the order of the paths, so that rounding does not depend on threads.
    for place, (moments, quartiles) in enumerate(measured):
        smallest, largest = quartiles[:, 0], quartiles[:, -1]
        is_out = (smallest < low) | (largest > high)
        for band in np.flatnonzero(is_out):
            value = largest[band] if largest[band] > high[band] else smallest[band]
            outliers.append(_Outlier(int(band), float(value), place, 1))
        if is_out.any():
            image = decoder.read(paths[place])
            bottom, top = (torch.from_numpy(bound).to(torch.float32)[:, None, None] for bound in (low, high))
            moments = moments_of(image.where((image >= bottom) & (image <= top), torch.nan))
        total = moments if total is None else combined(total, moments)
    assert total is not None, "a training has images"
    _require_values(total, names)
    mean, std = (tuple(map(float, values)) for values in (total.mean, np.sqrt(total.squares / total.count)))
    few_outliers, fractions = _first_of(outliers), _find_fractions(np.stack([own for _, own in measured]))
    content = {"mean": mean, "std": std, "outliers": few_outliers, "fractions": fractions}
    try:
        with cache.building(key, _FILE_BYTES) as folder:
            if not isinstance(folder, NoRoom):
                (folder / _FILE).write_text(json.dumps(content))
    except OSError:
        pass  # a read-only or full disk costs the next run time, nothing more
    seconds = time.monotonic() - began
    note = f"band statistics of {len(paths)} training images: made in {seconds:.1f} s"
    return BandStatistics(mean, std, note, _about(few_outliers, fractions, paths, names))


def _measure(image: Tensor) -> tuple[Moments, NDArray[np.float64]]:
    """The moments of an image, and by band smallest value, quartiles and largest value ``[C, 5]``."""
    rows = []
    for band in image.flatten(1).numpy():
        values = band[~np.isnan(band)]
        rows.append(np.quantile(values, (0, 0.25, 0.5, 0.75, 1)) if len(values) else np.full(5, np.nan))
    return moments_of(image), np.array(rows, np.float64)


def _bounds(measured: Sequence[tuple[Moments, NDArray[np.float64]]]) -> tuple[NDArray[np.float64], ...]:
    """By band what lies ``_FARTHEST`` robust deviations below and above the median of the images' medians.

    Such a deviation is the median of the images' interquartile ranges, or that range of their medians where it is
    larger; of bands in which both are 0, as of sparse ones, the median of the images' deviations.
    """
    quartiles = np.stack([own for _, own in measured])
    with np.errstate(invalid="ignore", divide="ignore"):
        std = np.stack([np.sqrt(moments.squares / moments.count) for moments, _ in measured])
    std[~(std > 0)] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of bands without values, which are refused later
        middle = np.nanmedian(quartiles[..., 2], axis=0)
        within = np.nanmedian(quartiles[..., 3] - quartiles[..., 1], axis=0)
        first, third = np.nanquantile(quartiles[..., 2], (0.25, 0.75), axis=0)
        fallback = np.nanmedian(std, axis=0)
    spread = np.maximum(within, third - first)
    spread = np.where(spread > 0, spread, fallback)
    reach = _FARTHEST * np.where(np.isfinite(spread), spread, np.inf)
    return middle - reach, middle + reach


def _first_of(outliers: Sequence[_Outlier]) -> list[_Outlier]:
    """The first few of each band, and how many images there are."""
    count = Counter(one.band for one in outliers)
    kept: list[_Outlier] = []
    for one in outliers:
        if sum(other.band == one.band for other in kept) < _LISTED and len(kept) < _KEPT:
            kept.append(one._replace(images=count[one.band]))
    return kept


def _find_fractions(quartiles: NDArray[np.float64]) -> _Fractions | None:
    """Images whose values are all fractions of about 1 where the others' are hundreds, by quartiles ``[N, C, 5]``."""
    values = np.nan_to_num(quartiles)
    largest, middle = np.abs(values).max(axis=(1, 2)), np.abs(values[..., 2]).max(axis=1)
    small = np.flatnonzero((largest <= _FRACTIONS) & (values % 1 != 0).any(axis=(1, 2)))
    stored = middle[middle >= _STORED]
    if not len(small) or not len(stored):
        return None
    return _Fractions(
        float(largest[small].max()), float(np.median(stored)), [int(place) for place in small[:_LISTED]], len(small)
    )


def _about(
    outliers: Sequence[_Outlier], fractions: _Fractions | None, paths: Sequence[str], names: Sequence[str]
) -> tuple[str, ...]:
    lines = []
    if fractions is not None:
        listed = ", ".join(repr(paths[image]) for image in fractions.images)
        verb = "image has" if fractions.num_images == 1 else "images have"
        lines.append(
            f"{fractions.num_images} {verb} no value above {fractions.largest:.3g} ({listed}"
            f"{', …' if fractions.num_images > len(fractions.images) else ''}), and in others {fractions.usual:.4g} "
            "is usual: these seem to be different units, such as reflectances from 0 to 1 among values up to 10 000. "
            "Bring all to one unit, or give the files scale tags, which are applied"
        )
    for band in dict.fromkeys(one.band for one in outliers):
        few = [one for one in outliers if one.band == band]
        listed = ", ".join(f"{np.float32(one.value)} in {paths[one.image]!r}" for one in few)
        count = few[0].images
        lines.append(
            f"band {names[band]!r} has values far from all others in {count} {'image' if count == 1 else 'images'}: "
            f"{listed}{', …' if count > len(few) else ''}; they are left out of its mean and deviation. Correct "
            "them, or name the value that stands for none with --nodata"
        )
    return tuple(lines)


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


def _read(
    folder: Path, bands: int, images: int
) -> tuple[tuple[float, ...], tuple[float, ...], list[_Outlier], _Fractions | None]:
    """Statistics of so many bands and images; raises as ``BoundedCache.load`` expects where they are none."""
    content = read_json(folder / _FILE, _FILE_BYTES)
    mean, std = (tuple(map(float, content[name])) for name in ("mean", "std"))
    outliers = [_Outlier(int(b), float(v), int(i), int(n)) for b, v, i, n in content["outliers"]]
    fractions = None
    if content["fractions"] is not None:
        largest, usual, places, count = content["fractions"]
        fractions = _Fractions(float(largest), float(usual), list(map(int, places)), int(count))
    named = [one.image for one in outliers] + ([] if fractions is None else fractions.images)
    is_sound = len(mean) == len(std) == bands and all(map(math.isfinite, (*mean, *std))) and min(std) > 0
    are_there = all(0 <= one.band < bands for one in outliers) and all(0 <= image < images for image in named)
    if not is_sound or not are_there:
        raise ValueError("these are no statistics of such images")
    return mean, std, outliers, fractions
