"""The flips and quarter turns of an image, over which predictions can be averaged."""

import warnings
from collections.abc import Iterator

from torch import Tensor

from sat_vg.backbone_finetuning.configs.choices import MOST_VIEWS
from sat_vg.backbone_finetuning.utils.errors import ConfigError

_FLIPS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))


def views_of(images: Tensor, count: int) -> Iterator[Tensor]:
    """The first ``count`` of the eight flips and quarter turns of ``images [B, C, H, W]``, themselves first.

    The second is flipped from left to right; the first four keep height and width, the others swap them: of images
    that are not square four at the most are given, with a warning.

    Raises:
        ConfigError: there are not so many views.
    """
    if not 1 <= count <= MOST_VIEWS:
        raise ConfigError(f"views = {count}: an image has 1 to {MOST_VIEWS} views; use 8 for all flips and turns")
    yield images
    for number in range(1, count):
        turned = images if number < len(_FLIPS) else images.transpose(-2, -1)
        if turned.shape != images.shape:
            height, width = images.shape[-2:]
            warnings.warn(
                f"views = {count}: images of {height} x {width} pixels are not square, so only the {len(_FLIPS)} "
                "views that keep their size are averaged",
                stacklevel=2,
            )
            return
        yield turned.flip(_FLIPS[number % len(_FLIPS)])
