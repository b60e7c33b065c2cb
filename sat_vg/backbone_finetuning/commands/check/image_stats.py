"""What a check keeps of each image, and what it makes of that: for 8-bit RGB, and for the bands of GeoTIFFs."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from sat_vg.backbone_finetuning.data.checks.band_statistics import measure_bands
from sat_vg.backbone_finetuning.data.checks.duplicates import thumbnail
from sat_vg.backbone_finetuning.data.checks.readable import Examined
from sat_vg.backbone_finetuning.data.checks.statistics import Statistics, look_at, summarise_looks
from sat_vg.backbone_finetuning.data.reading.bands import ChosenBands
from sat_vg.backbone_finetuning.data.reading.decoder import Decoder
from sat_vg.backbone_finetuning.data.reading.decoding import RGB_DECODER
from sat_vg.backbone_finetuning.data.reading.geo import decoder_of_files
from sat_vg.backbone_finetuning.data.reading.levels import decoder_of_levels
from sat_vg.backbone_finetuning.utils.bounded_cache import BoundedCache
from sat_vg.backbone_finetuning.utils.preprocessing import RGB, Levels, Preprocessing

_PARTS = 9  # of each side of a thumbnail


class Looks(Protocol):
    """How the images of a data set are looked at."""

    @property
    def bands(self) -> tuple[str, ...]:
        """What the channels are called."""

    @property
    def digits(self) -> str:
        """Format of a mean or a deviation, for people."""

    @property
    def decoder(self) -> Decoder:
        """How files are read."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was odd about the settings beside the files."""

    def look(self, image: Tensor) -> Any:
        """What is kept of a decoded image."""

    def summarise(self, paths: Sequence[str], examined: Examined) -> Statistics:
        """Numbers on some of the images, at least one.

        Raises:
            DataError: a training on them would be refused.
        """

    def thumbnails(self, looks: Sequence[Any], numbers: Statistics | None) -> NDArray[np.uint8]:
        """Images as ``duplicates.find_near`` compares them, ``[N, 9, 9]``; ``numbers``: of train, where they are."""


@dataclass(frozen=True)
class RgbLooks:
    """``Looks`` at 8-bit RGB images."""

    bands: tuple[str, ...] = RGB
    digits: str = ".3f"
    decoder: Decoder = RGB_DECODER
    warnings: tuple[str, ...] = ()

    def look(self, image: Tensor) -> Any:
        """Size, sums and thumbnail."""
        return look_at(image)

    def summarise(self, paths: Sequence[str], examined: Examined) -> Statistics:
        """Of all pixels, scaled to [0, 1]."""
        return summarise_looks([examined.looks[path] for path in paths])

    def thumbnails(self, looks: Sequence[Any], numbers: Statistics | None) -> NDArray[np.uint8]:
        """As they were made when the images were at hand."""
        return np.stack([look.small for look in looks])


@dataclass(frozen=True)
class BandLooks:
    """``Looks`` at the bands of GeoTIFFs, whose values are of any scale.

    Attributes:
        chosen: which bands.
        decoder: reads them; missing values are NaN.
        cache: where the training looks for their statistics.
        digits: see ``Looks``.
    """

    chosen: ChosenBands
    decoder: Decoder
    cache: BoundedCache
    digits: str = ".5g"

    @property
    def bands(self) -> tuple[str, ...]:
        """As the model would call them."""
        return self.chosen.names

    @property
    def warnings(self) -> tuple[str, ...]:
        """Of the choice of bands."""
        return self.chosen.warnings

    def look(self, image: Tensor) -> Any:
        """The mean of each of 9 x 9 parts, float32 ``[C, 9, 9]``; NaN where all of a part is missing."""
        there = functional.adaptive_avg_pool2d((~image.isnan()).float(), _PARTS)
        return functional.adaptive_avg_pool2d(image.nan_to_num(nan=0.0), _PARTS) / there

    def summarise(self, paths: Sequence[str], examined: Examined) -> Statistics:
        """Of all values that are not missing, as they stand in the files: the training's own, which finds them."""
        found = measure_bands(paths, examined.contents, self.bands, self.decoder, self.cache)
        sizes = Counter(examined.sizes[path][::-1] for path in paths)
        return Statistics(dict(sizes.most_common()), 0, found.mean, found.std, found.warnings)

    def thumbnails(self, looks: Sequence[Any], numbers: Statistics | None) -> NDArray[np.uint8]:
        """In the colours of all other pictures of them; all alike, so that none is compared, where there are none."""
        if numbers is None:
            return np.zeros((len(looks), _PARTS, _PARTS), np.uint8)
        means = torch.stack(list(looks))
        mean = torch.tensor(numbers.mean)[:, None, None]
        shown = Preprocessing(
            image_size=_PARTS, mean=numbers.mean, std=numbers.std, bands=self.bands, scale=1.0
        ).pictures(torch.where(means.isnan(), mean, means))
        return np.stack([thumbnail(image) for image in shown])


def looks_of(chosen: ChosenBands | None, levels: Levels | None, cache: BoundedCache) -> Looks:
    """How images are looked at: the bands that a configuration names, deep RGB by its levels, or 8-bit RGB."""
    if levels is not None:
        return RgbLooks(decoder=decoder_of_levels(levels))
    return RgbLooks() if chosen is None else BandLooks(chosen, decoder_of_files(chosen.files), cache)
