"""Grids of images with titles, drawn by Pillow: every run draws some, and matplotlib would take a second to begin."""

import textwrap
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sat_vg.backbone_finetuning.utils.printable import one_line

_SIDE, _MARGIN = 196, 5  # pixels, of an image with the margins at its sides
_TITLE_SIZE, _TITLE_LINE, _HEADING_SIZE, _HEADING_LINE = 14, 20, 18, 24
_FONT = "mpl-data/fonts/ttf/DejaVuSans.ttf"  # matplotlib's, which the other figures are written in


def draw_image_grid(images: np.ndarray, titles: Sequence[str], heading: str, columns: int = 4) -> Image.Image:
    """A grid of images with a title over each.

    Args:
        images: uint8 ``[N, H, W, 3]``.
        titles: N texts, of several lines if need be; what is wider than an image is cut.
        heading: over the whole grid; of several lines if need be.
        columns: images in a row.
    """
    rows, lines = -(-len(images) // columns), max((title.count("\n") + 1 for title in titles), default=1)
    above = _MARGIN + _TITLE_LINE * lines
    top = 2 * _MARGIN + _HEADING_LINE * (heading.count("\n") + 1)
    grid = Image.new("RGB", (columns * _SIDE, top + rows * (above + _SIDE)), "white")
    pen = ImageDraw.Draw(grid)
    for number, line in enumerate(heading.split("\n")):
        place = (grid.width / 2, _MARGIN + _HEADING_LINE * number)
        pen.text(place, _fitting(line, _HEADING_SIZE, grid.width), "black", _font(_HEADING_SIZE), anchor="ma")
    for number, (image, title) in enumerate(zip(images, titles, strict=True)):
        row, column = divmod(number, columns)
        left, upper = column * _SIDE + _MARGIN, top + row * (above + _SIDE) + above
        grid.paste(_resized(image), (left, upper))
        shown = title.split("\n")
        for place, line in enumerate(shown):
            y = upper - _MARGIN - _TITLE_LINE * (len(shown) - place - 1)
            middle = left - _MARGIN + _SIDE / 2
            pen.text((middle, y), _fitting(line, _TITLE_SIZE, _SIDE), "black", _font(_TITLE_SIZE), anchor="md")
    return grid


def in_lines(text: str) -> str:
    """A title that is broken between words where it is longer than an image of the grid is wide, into three lines."""
    return "\n".join(textwrap.wrap(one_line(text), 22, max_lines=3, placeholder=" …", break_long_words=False))


def _resized(image: np.ndarray) -> Image.Image:
    """The image with its longer side as long as the grid's pictures are; small ones show their pixels."""
    side, longest = _SIDE - 2 * _MARGIN, max(image.shape[:2])
    size = (max(1, image.shape[1] * side // longest), max(1, image.shape[0] * side // longest))
    how = Image.Resampling.NEAREST if 2 * longest < side else Image.Resampling.BILINEAR
    return Image.fromarray(np.ascontiguousarray(image)).resize(size, how)


def _fitting(line: str, size: int, width: int) -> str:
    """The line without control characters, cut to a width in pixels."""
    font, shown = _font(size), "".join(c if c.isprintable() else "?" for c in line)
    if font.getlength(shown) <= width - 2 * _MARGIN:
        return shown
    while shown and font.getlength(f"{shown}…") > width - 2 * _MARGIN:
        shown = shown[:-1]
    return f"{shown}…"


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    found = find_spec("matplotlib")  # without importing it
    if found is None or found.origin is None:
        return ImageFont.load_default(size)
    return ImageFont.truetype(Path(found.origin).parent / _FONT, size)
