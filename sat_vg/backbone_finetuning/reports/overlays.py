"""Heat laid over images, as in explanations of what a classifier looked at."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image

from sat_vg.backbone_finetuning.reports.figures import plain

_COLOURS = colormaps["inferno"]  # perceptually uniform: equal steps of heat look equally large
_PAIRS_IN_A_ROW = {1: 1, 2: 2, 4: 2, 3: 3, 5: 3, 6: 3, 9: 3}  # so that few cells stay empty; otherwise 4
_COLDEST, _HOTTEST = 0.3, 0.85  # opacity of the heat; the image is seen through everywhere


def draw_overlays(images: np.ndarray, heats: np.ndarray, titles: Sequence[str], heading: str) -> Figure:
    """Each image beside the same image under its heat; the figure grows downwards, 1 to 4 images wide.

    Args:
        images: uint8 ``[N, H, W, 3]``.
        heats: ``[N, h, w]``, 0 to 1; of any size, stretched bilinearly over the image.
        titles: N texts of one or two lines.
        heading: over the whole figure.

    Raises:
        ValueError: there is no image, or not as many heats or titles as images.
    """
    count = len(images)
    if not count or len(heats) != count or len(titles) != count:
        raise ValueError(
            f"{count} images, {len(heats)} heats and {len(titles)} titles: give as many of each, at least 1"
        )
    pairs = _PAIRS_IN_A_ROW.get(count, 4)
    rows = math.ceil(count / pairs)
    side = 3.2 if count == 1 else 2.0
    height = side * float(np.clip(images.shape[1] / images.shape[2], 0.3, 3))
    lines = max(title.count("\n") for title in titles) + 1
    size = (2 * side * pairs + 1, (height + 0.12 + 0.14 * lines) * rows + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, 2 * pairs, squeeze=False)
    for axes in grid.ravel():
        axes.axis("off")
    cells = grid.reshape(-1, 2)
    for (left, right), image, heat, title in zip(cells, images, heats, titles, strict=False):
        left.imshow(image)
        left.set_title("\n".join(plain(line, limit=40) for line in title.split("\n")), fontsize=8, loc="left")
        right.imshow(lay_over(image, heat))
    colours = ScalarMappable(Normalize(0, 1), _COLOURS)
    scale = figure.colorbar(colours, ax=grid, fraction=0.03, pad=0.01, aspect=10 * size[1])  # 0.1 inch wide
    scale.set_label("heat", fontsize=8)
    scale.ax.tick_params(labelsize=7)
    figure.suptitle(plain(heading, limit=200), fontsize=10)
    return figure


def lay_over(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Colour an image ``[H, W, 3]`` by heat ``[h, w]``, 0 to 1, the more opaquely the hotter, in uint8."""
    size = (image.shape[1], image.shape[0])
    heat = np.asarray(Image.fromarray(heat.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
    opacity = (_COLDEST + (_HOTTEST - _COLDEST) * heat)[..., None]
    mixed = opacity * 255 * _COLOURS(heat)[..., :3] + (1 - opacity) * image
    coloured: np.ndarray = np.round(mixed).astype(np.uint8)
    return coloured
