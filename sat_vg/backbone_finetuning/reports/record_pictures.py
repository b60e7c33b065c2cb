"""Pictures drawn by Pillow: grids of images, confusion matrices, and the learning curves of a run's record.

Every run draws some, and matplotlib takes a second for its first figure. Other figures are matplotlib's.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sat_vg.backbone_finetuning.utils.printable import counted, one_line

_SIDE, _MARGIN = 196, 5  # pixels, of an image with the margins at its sides
_TITLE_SIZE, _TITLE_LINE, _HEADING_SIZE, _HEADING_LINE = 14, 20, 18, 24
_MAX_NAMED_CLASSES, _MAX_NUMBERED_CLASSES = 60, 25  # with more, names or numbers could not be read
_NAME_SIZE, _NAME_WIDTH, _COUNT_SIZE = 16, 230, 10
_LONGEST_SIDE = 1200  # pixels, of a matrix without names
_BLUES = ((247, 251, 255), (107, 174, 214), (8, 48, 107))  # at shares of 0, 0.5 and 1
_CHART, _SHARPER, _LABEL_SIZE = (403, 390), 2, 13  # pixels; charts are drawn so many times as large, then shrunk
_CURVE_COLOURS, _GRID = ((31, 119, 180), (255, 127, 14)), (215, 215, 215)
_FONT = "mpl-data/fonts/ttf/DejaVuSans.ttf"  # matplotlib's, which the other figures are written in


def draw_image_grid(images: np.ndarray, titles: Sequence[str], heading: str, columns: int = 4) -> Image.Image:
    """A grid of images, uint8 ``[N, H, W, 3]``, with a title of one or several lines over each.

    Titles that are wider than an image are cut; the heading over the whole grid is broken.
    """
    columns = max(1, min(columns, len(images)))
    heading = "\n".join(
        part for line in heading.split("\n") for part in _broken(line, _HEADING_SIZE, columns * _SIDE)
    )
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
        for above_last, line in enumerate(reversed(shown)):
            y = upper - _MARGIN - _TITLE_LINE * above_last
            middle = left - _MARGIN + _SIDE / 2
            pen.text((middle, y), _fitting(line, _TITLE_SIZE, _SIDE), "black", _font(_TITLE_SIZE), anchor="md")
    return grid


def _broken(text: str, size: int, width: float) -> list[str]:
    """A text in lines of so many pixels, broken between words."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".lstrip()
        if lines[-1] and _font(size).getlength(longer) > width - 2 * _MARGIN:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def draw_confusion(confusion: np.ndarray, class_names: Sequence[str], split: str = "validation") -> Image.Image:
    """A confusion matrix, coloured by shares of the true class, with counts if there is room.

    Names are large enough to be read where the picture is shown 350 pixels wide, as TensorBoard does. ``split`` is
    the name of the images' split, for the heading.
    """
    count, counts = len(class_names), confusion.astype(np.int64)
    is_named, has_numbers = count <= _MAX_NAMED_CLASSES, count <= _MAX_NUMBERED_CLASSES
    names = [_fitting(name, _NAME_SIZE, _NAME_WIDTH) for name in class_names] if is_named else []
    room = 3 * _MARGIN + max((round(_font(_NAME_SIZE).getlength(name)) for name in names), default=0)
    digits = len(str(counts.max(initial=0)))
    cell = max(18, 7 * digits + 2) if is_named else max(1, _LONGEST_SIDE // count)
    accuracy = counts.trace() / max(counts.sum(), 1)
    heading = (
        f"{counted(int(counts.sum()), f'{split} image')}, {100 * accuracy:.2f} % correct",
        "rows: true class, columns: predicted class",
    )
    widest = max(round(_font(_HEADING_SIZE).getlength(line)) for line in heading)
    top = 2 * _MARGIN + 2 * _HEADING_LINE
    drawn = Image.new("RGB", (max(room + count * cell, widest) + 2 * _MARGIN, top + count * cell + room), "white")
    pen = ImageDraw.Draw(drawn)
    for number, line in enumerate(heading):
        pen.text((_MARGIN, _MARGIN + number * _HEADING_LINE), line, "black", _font(_HEADING_SIZE))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    colours = np.stack([np.interp(shares, (0, 0.5, 1), channel) for channel in zip(*_BLUES, strict=True)], axis=2)
    cells = colours.round().astype(np.uint8).repeat(cell, axis=0).repeat(cell, axis=1)
    drawn.paste(Image.fromarray(cells), (room, top))
    for number, name in enumerate(names):
        middle = (number + 0.5) * cell
        pen.text((room - _MARGIN, top + middle), name, "black", _font(_NAME_SIZE), anchor="rm")
        upright = _upright(name)
        drawn.paste("black", (round(room + middle - upright.width / 2), top + count * cell + _MARGIN), upright)
    for row, column in zip(*np.nonzero(counts), strict=True) if has_numbers else ():
        colour = "white" if shares[row, column] > 0.5 else "black"
        place = (room + (column + 0.5) * cell, top + (row + 0.5) * cell)
        pen.text(place, str(counts[row, column]), colour, _font(_COUNT_SIZE), anchor="mm")
    return drawn


def measure_of(epoch: Mapping[str, float]) -> tuple[str, str]:
    """Key and name of the measure that an epoch is judged by: mAP where an image can have several classes."""
    return ("val_map", "mAP") if "val_map" in epoch else ("val_accuracy", "accuracy")


def draw_curves(epochs: Sequence[Mapping[str, float]], best_epoch: int) -> Image.Image:
    """Losses and validation accuracy, or mean average precision, by epoch; there must be two of them.

    Where ``best_epoch``, that of best_model.pt, is not among them, none is called the best.
    """
    numbers = [int(entry["epoch"]) for entry in epochs]
    key, measure = measure_of(epochs[0])
    shares = [100 * entry[key] for entry in epochs]
    drawn = Image.new("RGB", (2 * _SHARPER * _CHART[0], _SHARPER * _CHART[1]), "white")
    losses = {name: [entry[name] for entry in epochs] for name in ("train_loss", "val_loss")}
    _draw_chart(drawn, 0, numbers, losses, "loss by epoch")
    best = [share for share, number in zip(shares, numbers, strict=True) if number == best_epoch]
    told = f"best model: {best[-1]:.2f} %, epoch {best_epoch}" if best else measure
    _draw_chart(drawn, _CHART[0], numbers, {told: shares}, f"validation {measure}, %, by epoch")
    return drawn.resize((2 * _CHART[0], _CHART[1]), Image.Resampling.BOX)


def _draw_chart(
    drawn: Image.Image, left: int, numbers: Sequence[int], curves: Mapping[str, Sequence[float]], title: str
) -> None:
    """Draw curves over the epochs into a picture, at ``left`` pixels of the finished one, each with its name."""
    pen, font = ImageDraw.Draw(drawn), _font(_SHARPER * _LABEL_SIZE)
    x0, x1 = _SHARPER * (left + 60), _SHARPER * (left + _CHART[0] - 15)
    y0, y1 = _SHARPER * (_CHART[1] - 35), _SHARPER * 55  # of the lowest and the highest value
    values = [value for curve in curves.values() for value in curve]
    margin = 0.05 * (max(values) - min(values)) or 0.05 * abs(values[0]) or 1.0
    low, high = min(values) - margin, max(values) + margin
    across = [x0 + (x1 - x0) * (number - numbers[0]) / max(numbers[-1] - numbers[0], 1) for number in numbers]

    def height(value: float) -> float:
        return y0 + (y1 - y0) * (value - low) / (high - low)

    shown = _fitting(title, _SHARPER * _TITLE_SIZE, _SHARPER * _CHART[0])
    pen.text((x0, _SHARPER * _MARGIN), shown, "black", _font(_SHARPER * _TITLE_SIZE))
    for tick in _ticks(low, high):
        pen.line((x0, height(tick), x1, height(tick)), _GRID, _SHARPER)
        pen.text((x0 - _SHARPER * _MARGIN, height(tick)), f"{tick:.10g}", "black", font, anchor="rm")
    for place in range(0, len(numbers), -(-len(numbers) // 10)):
        pen.line((across[place], y0, across[place], y1), _GRID, _SHARPER)
        pen.text((across[place], y0 + _SHARPER * _MARGIN), str(numbers[place]), "black", font, anchor="ma")
    begin = float(x0)
    for (name, curve), colour in zip(curves.items(), _CURVE_COLOURS, strict=False):
        points = [(x, height(value)) for x, value in zip(across, curve, strict=True)]
        pen.line(points, colour, 2 * _SHARPER, joint="curve")
        for x, y in points:
            pen.ellipse((x - 3 * _SHARPER, y - 3 * _SHARPER, x + 3 * _SHARPER, y + 3 * _SHARPER), colour)
        pen.text((begin, _SHARPER * (_MARGIN + _TITLE_LINE)), name, colour, font)
        begin += font.getlength(f"{name}   ")


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from ``low`` to ``high``, two to six of them."""
    rough = (high - low) / 5
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= rough)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _upright(text: str) -> Image.Image:
    """A text turned to the left by a quarter, as a mask."""
    font = _font(_NAME_SIZE)
    mask = Image.new("L", (max(1, round(font.getlength(text))), _NAME_SIZE + 4))
    ImageDraw.Draw(mask).text((0, mask.height / 2), text, 255, font, anchor="lm")
    return mask.transpose(Image.Transpose.ROTATE_90)


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
