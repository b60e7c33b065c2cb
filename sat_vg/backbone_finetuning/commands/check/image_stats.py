"""Statistics that a check takes of each image and of all together: for 8-bit RGB, and for the bands of GeoTIFFs."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from sat_vg.backbone_finetuning.data.checks.band_statistics import measure_bands
from sat_vg.backbone_finetuning.data.checks.duplicates import thumbnail
from sat_vg.backbone_finetuning.data.checks.readable import Examined
from sat_vg.backbone_finetuning.data.reading.bands import ChosenBands
from sat_vg.backbone_finetuning.data.reading.decoder import Decoder
from sat_vg.backbone_finetuning.data.reading.decoding import RGB_DECODER
from sat_vg.backbone_finetuning.data.reading.geo import decoder_of_files
from sat_vg.backbone_finetuning.data.reading.levels import LevelsReader
from sat_vg.backbone_finetuning.utils.bounded_cache import BoundedCache
from sat_vg.backbone_finetuning.utils.preprocessing import RGB, Levels, Preprocessing

_PARTS = 9  # along each side of a thumbnail
_PIXELS_AT_A_TIME = 2**20


class Statistics(NamedTuple):
    """Numbers on a set of images."""

    sizes: dict[tuple[int, int], int]  # number of images per width and height, most frequent first
    grey: int  # images whose bands are all equal
    mean: tuple[float, ...]  # per band, of all pixels; of 8-bit RGB scaled to [0, 1]
    std: tuple[float, ...]  # likewise
    warnings: tuple[str, ...] = ()  # values that were left out of them, in words


class _Measured(NamedTuple):
    size: tuple[int, int]  # width and height in pixels
    sums: NDArray[np.float64]  # of every band's values, ``[3]``
    squares: NDArray[np.float64]  # of every band's squared values, ``[3]``
    grey: bool  # whether all bands are equal
    small: NDArray[np.uint8]  # its thumbnail


@dataclass(frozen=True)
class RgbStats:
    """Statistics of 8-bit RGB images."""

    bands: tuple[str, ...] = RGB
    digits: str = ".3f"  # format of a mean or a deviation in the report
    decoder: Decoder = RGB_DECODER
    warnings: tuple[str, ...] = ()

    def measure(self, image: Tensor) -> Any:
        """Size, sums and thumbnail of an image, uint8 ``[3, H, W]``."""
        pixels = image.permute(1, 2, 0).reshape(-1, 3).numpy()
        counts = np.zeros((3, 256), np.int64)  # exact, and no slower than sums of floats
        for start in range(0, len(pixels), _PIXELS_AT_A_TIME):
            for band in range(3):
                counts[band] += np.bincount(pixels[start : start + _PIXELS_AT_A_TIME, band], minlength=256)
        values = np.arange(256)
        sums, squares = (counts @ values).astype(np.float64), (counts @ values**2).astype(np.float64)
        grey = bool((counts == counts[0]).all()) and bool((pixels == pixels[:, :1]).all())
        return _Measured((image.shape[2], image.shape[1]), sums, squares, grey, thumbnail(image))

    def summarise(self, paths: Sequence[str], examined: Examined) -> Statistics:
        """Statistics of all pixels of some of the images, at least one, scaled to [0, 1]."""
        stats: list[_Measured] = [examined.stats[path] for path in paths]
        count = sum(one.size[0] * one.size[1] for one in stats)
        mean = np.sum([one.sums for one in stats], axis=0) / count
        variance = np.sum([one.squares for one in stats], axis=0) / count - np.square(mean)
        return Statistics(
            sizes=dict(Counter(one.size for one in stats).most_common()),
            grey=sum(one.grey for one in stats),
            mean=tuple(map(float, mean / 255)),
            std=tuple(map(float, np.sqrt(np.maximum(variance, 0)) / 255)),
        )

    def thumbnails(self, looks: Sequence[Any], numbers: Statistics | None) -> NDArray[np.uint8]:
        """Images as ``duplicates.find_near`` compares them, ``[N, 9, 9]``."""
        return np.stack([look.small for look in looks])


@dataclass(frozen=True)
class BandStats:
    """Statistics of the bands of GeoTIFFs, whose values are of any scale; the methods are those of ``RgbStats``."""

    chosen: ChosenBands  # bands that are read
    decoder: Decoder  # of the files; missing values are NaN
    cache: BoundedCache  # that a training on them reads their statistics from
    digits: str = ".5g"

    @property
    def bands(self) -> tuple[str, ...]:
        """Names that the model would have for them."""
        return self.chosen.names

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings about the choice of bands."""
        return self.chosen.warnings

    def measure(self, image: Tensor) -> Any:
        """The mean of each of 9 x 9 parts, float32 ``[C, 9, 9]``; NaN where all of a part is missing."""
        there = functional.adaptive_avg_pool2d((~image.isnan()).float(), _PARTS)
        return functional.adaptive_avg_pool2d(image.nan_to_num(nan=0.0), _PARTS) / there

    def summarise(self, paths: Sequence[str], examined: Examined) -> Statistics:
        """Statistics of all values that are not missing, as in the files; cached, so that a training finds them.

        Raises DataError where a training on them would be refused.
        """
        found = measure_bands(paths, examined.contents, self.bands, self.decoder, self.cache)
        sizes = Counter(examined.sizes[path][::-1] for path in paths)
        return Statistics(dict(sizes.most_common()), 0, found.mean, found.std, found.warnings)

    def thumbnails(self, looks: Sequence[Any], numbers: Statistics | None) -> NDArray[np.uint8]:
        """Images in colour, as in all other pictures; without numbers all alike, so that none is compared."""
        if numbers is None:
            return np.zeros((len(looks), _PARTS, _PARTS), np.uint8)
        means = torch.stack(list(looks))
        mean = torch.tensor(numbers.mean)[:, None, None]
        shown = Preprocessing(
            image_size=_PARTS, mean=numbers.mean, std=numbers.std, bands=self.bands, scale=1.0
        ).pictures(torch.where(means.isnan(), mean, means))
        return np.stack([thumbnail(image) for image in shown])


ImageStats = RgbStats | BandStats


def stats_of(chosen: ChosenBands | None, levels: Levels | None, cache: BoundedCache) -> ImageStats:
    """Statistics of the bands that a configuration names, of deep RGB by its levels, or of 8-bit RGB."""
    if levels is not None:
        return RgbStats(decoder=LevelsReader(levels))
    return RgbStats() if chosen is None else BandStats(chosen, decoder_of_files(chosen.files), cache)
