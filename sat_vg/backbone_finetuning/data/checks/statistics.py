"""Statistics of a data set: sizes, grey images, mean and deviation by band."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sat_vg.backbone_finetuning.data.checks.duplicates import thumbnail
from sat_vg.backbone_finetuning.data.sources.splits import Splits

_PART = 2**20  # pixels that are counted at a time


class ImageStats(NamedTuple):
    """Measurements of one image."""

    size: tuple[int, int]  # width and height in pixels
    sums: NDArray[np.float64]  # of every band's values, float64 ``[3]``
    squares: NDArray[np.float64]  # of every band's squared values, float64 ``[3]``
    grey: bool  # whether all bands are equal
    small: NDArray[np.uint8]  # its thumbnail (see ``duplicates.thumbnail``)


@dataclass(frozen=True)
class Statistics:
    """Numbers on a set of images."""

    sizes: dict[tuple[int, int], int]  # number of images per width and height, most frequent first
    grey: int  # images whose bands are all equal
    mean: tuple[float, ...]  # per band, of all pixels, scaled to [0, 1]
    std: tuple[float, ...]  # per band, of all pixels, scaled to [0, 1]
    warnings: tuple[str, ...] = ()  # values that were left out of them, in words


def measure_image(image: Tensor) -> ImageStats:
    """Measure an image, uint8 ``[3, H, W]``."""
    pixels = image.permute(1, 2, 0).reshape(-1, 3).numpy()
    counts = np.zeros((3, 256), np.int64)  # exact, and no slower than sums of floats
    for start in range(0, len(pixels), _PART):
        for band in range(3):
            counts[band] += np.bincount(pixels[start : start + _PART, band], minlength=256)
    values = np.arange(256)
    sums, squares = (counts @ values).astype(np.float64), (counts @ values**2).astype(np.float64)
    same = bool((counts == counts[0]).all())
    grey = same and bool((pixels == pixels[:, :1]).all())
    return ImageStats((image.shape[2], image.shape[1]), sums, squares, grey, thumbnail(image))


def summarise(stats: Sequence[ImageStats]) -> Statistics:
    """Numbers on all images together."""
    count = sum(one.size[0] * one.size[1] for one in stats)
    mean = np.sum([one.sums for one in stats], axis=0) / count
    variance = np.sum([one.squares for one in stats], axis=0) / count - np.square(mean)
    return Statistics(
        sizes=dict(Counter(one.size for one in stats).most_common()),
        grey=sum(one.grey for one in stats),
        mean=tuple(float(value) for value in mean / 255),
        std=tuple(float(value) for value in np.sqrt(np.maximum(variance, 0)) / 255),
    )


def class_table(splits: Splits) -> list[tuple[str | int, ...]]:
    """Name of every class and its images in train, val and, where there is one, test."""
    counts = zip(*(split.class_counts() for split in splits.parts), strict=True)
    return [(name, *row) for name, row in zip(splits.class_names, counts, strict=True)]
