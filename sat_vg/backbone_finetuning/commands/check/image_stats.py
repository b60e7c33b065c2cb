"""Statistics that a check takes of each image and of all together: for 8-bit RGB, and for the bands of GeoTIFFs."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from sat_vg.backbone_finetuning.data.checks.band_statistics import measure_bands
from sat_vg.backbone_finetuning.data.checks.duplicates import thumbnail
from sat_vg.backbone_finetuning.data.checks.readable import Examined
from sat_vg.backbone_finetuning.data.checks.statistics import Statistics, measure_image, summarise
from sat_vg.backbone_finetuning.data.reading.bands import ChosenBands
from sat_vg.backbone_finetuning.data.reading.decoder import Decoder
from sat_vg.backbone_finetuning.data.reading.decoding import RGB_DECODER
from sat_vg.backbone_finetuning.data.reading.geo import decoder_of_files
from sat_vg.backbone_finetuning.data.reading.levels import LevelsReader
from sat_vg.backbone_finetuning.utils.bounded_cache import BoundedCache
from sat_vg.backbone_finetuning.utils.preprocessing import RGB, Levels, Preprocessing

_PARTS = 9  # along each side of a thumbnail


@dataclass(frozen=True)
class RgbStats:
    """Statistics of 8-bit RGB images.

    Attributes:
        bands: names of the channels.
        digits: format of a mean or a deviation in the report.
        decoder: of the files.
        warnings: about the choice of bands.
    """

    bands: tuple[str, ...] = RGB
    digits: str = ".3f"
    decoder: Decoder = RGB_DECODER
    warnings: tuple[str, ...] = ()

    def measure(self, image: Tensor) -> Any:
        """Size, sums and thumbnail."""
        return measure_image(image)

    def summarise(self, paths: Sequence[str], examined: Examined) -> Statistics:
        """Statistics of all pixels of some images, at least one, scaled to [0, 1]."""
        return summarise([examined.stats[path] for path in paths])

    def thumbnails(self, looks: Sequence[Any], numbers: Statistics | None) -> NDArray[np.uint8]:
        """Images as ``duplicates.find_near`` compares them, ``[N, 9, 9]``; ``numbers``: those of train, if any."""
        return np.stack([look.small for look in looks])


@dataclass(frozen=True)
class BandStats:
    """As ``RgbStats``, of the bands of GeoTIFFs, whose values are of any scale.

    Attributes:
        chosen: bands that are read.
        decoder: of the files; missing values are NaN.
        cache: that a training on them reads their statistics from.
        digits: see ``RgbStats``.
    """

    chosen: ChosenBands
    decoder: Decoder
    cache: BoundedCache
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

        Raises:
            DataError: a training on them would be refused.
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


ImageStats: TypeAlias = RgbStats | BandStats


def stats_of(chosen: ChosenBands | None, levels: Levels | None, cache: BoundedCache) -> ImageStats:
    """Statistics of the bands that a configuration names, of deep RGB by its levels, or of 8-bit RGB."""
    if levels is not None:
        return RgbStats(decoder=LevelsReader(levels))
    return RgbStats() if chosen is None else BandStats(chosen, decoder_of_files(chosen.files), cache)
