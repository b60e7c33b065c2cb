"""Drawing of the built-in scenes: noise, antialiased shapes, fields, trees, water, and the camera.

Lengths are in units of 1/64 of a tile's side, so that a tile of another size shows the same scene. Shapes lie in a
frame that is centred on the tile and turned at random, because overhead images have no "up". Colours are RGB, 0 to 1.
"""

from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Array: TypeAlias = npt.NDArray[np.float32]
Shape: TypeAlias = tuple[Array, Array]
Lengths: TypeAlias = float | npt.NDArray[np.floating]
Plot: TypeAlias = tuple[float, float, float, float]

UNITS = 64
REACH = 48.0  # half a tile's diagonal and a little more: what spans [-REACH, REACH] spans the turned tile
_GROUND: Plot = (-REACH, -REACH, REACH, REACH)
_SUPERSAMPLING = 3


def _palette(*rows: tuple[float, float, float]) -> Array:
    return np.array(rows, dtype=np.float32)


SOILS = _palette((0.50, 0.40, 0.30), (0.62, 0.54, 0.42), (0.54, 0.36, 0.26), (0.42, 0.38, 0.34), (0.34, 0.28, 0.22))
LUSH = _palette((0.17, 0.27, 0.16), (0.24, 0.35, 0.18), (0.30, 0.40, 0.20), (0.20, 0.30, 0.22))
DRY = _palette((0.50, 0.44, 0.28), (0.42, 0.36, 0.22), (0.56, 0.50, 0.34), (0.38, 0.33, 0.27))
WATERS = _palette((0.08, 0.16, 0.24), (0.12, 0.25, 0.26), (0.25, 0.31, 0.25), (0.24, 0.29, 0.30), (0.18, 0.32, 0.42))
PAVINGS = _palette((0.34, 0.34, 0.35), (0.46, 0.46, 0.46), (0.58, 0.57, 0.54), (0.52, 0.48, 0.42))
ROOFS = _palette((0.58, 0.34, 0.26), (0.50, 0.42, 0.36), (0.66, 0.62, 0.58), (0.36, 0.34, 0.36), (0.82, 0.82, 0.80))


class Canvas:
    """One tile being drawn.

    Attributes:
        rng: the tile's random stream.
        size: height and width in pixels.
        image: float32 ``[size, size, 3]``, RGB in ``[0, 1]``.
        u: float32 ``[size, size]``, each pixel's first coordinate in the turned frame, in units; ``v`` likewise.
        light: float32 ``[2]``, unit vector in the turned frame that shadows fall along.
        dryness: season of the vegetation, 0 (lush) to 1 (dry).
    """

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        self.rng, self.size = rng, size
        self.image: Array = np.zeros((size, size, 3), dtype=np.float32)
        angle, light = rng.uniform(0, 2 * np.pi, 2)
        self._turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]], dtype=np.float32)
        self.light: Array = np.array([np.cos(light), np.sin(light)], dtype=np.float32)
        self.dryness = float(rng.beta(1.1, 1.3))
        axis = ((np.arange(size, dtype=np.float32) + 0.5) / size - 0.5) * UNITS
        frame = np.stack(np.broadcast_arrays(axis[None, :], axis[:, None]), axis=-1) @ self._turn.T
        self.u, self.v = frame[..., 0], frame[..., 1]

    def noise(self, cell: float, octaves: int = 3) -> Array:
        """Fractal value noise ``[size, size]`` of about unit variance; ``cell`` is its longest wavelength."""
        total = np.zeros((self.size, self.size), dtype=np.float32)
        power, amplitude = 0.0, 1.0
        for _ in range(octaves):
            span = UNITS / cell
            knots = self.rng.standard_normal((int(span) + 4, int(span) + 4), dtype=np.float32)
            # A random offset, or the knots of every tile would lie at the same pixels.
            left, top = self.rng.uniform(0.5, 1.5, 2)
            box = (left, top, left + span, top + span)
            layer = Image.fromarray(knots).resize((self.size, self.size), Image.Resampling.BICUBIC, box=box)
            total += amplitude * np.asarray(layer)
            power += 0.6 * amplitude**2
            cell, amplitude = max(cell / 2, 1.0), amplitude * 0.6
        fractal: Array = total / np.float32(np.sqrt(power))
        return fractal

    def pick(self, palette: Array) -> Array:
        """A random mixture ``[3]`` of two of the palette's colours."""
        colour: Array = self.pick_many(palette, 1)[0]
        return colour

    def pick_many(self, palette: Array, count: int) -> Array:
        """Several such mixtures, ``[count, 3]``."""
        first, second = palette[self.rng.integers(0, len(palette), (2, count))]
        mixture = first + (second - first) * self.rng.uniform(size=(count, 1))
        colours: Array = np.clip(mixture + self.rng.normal(0, 0.02, (count, 3)), 0.02, 0.98).astype(np.float32)
        return colours

    def vegetation(self, count: int = 1) -> Array:
        """Colours ``[count, 3]`` of plants in this tile's season."""
        lush, dry = self.pick_many(LUSH, count), self.pick_many(DRY, count)
        ripeness = np.clip(self.dryness + self.rng.normal(0, 0.15, (count, 1)), 0, 1).astype(np.float32)
        return lush + (dry - lush) * ripeness

    def cover(self, colour: Array, shade: Array, mask: Array | None = None) -> None:
        """Lay ``colour`` times ``1 + shade`` over the tile, where ``mask`` ``[size, size]`` lets it."""
        layer = colour * (1 + shade)[..., None]
        self.image = layer if mask is None else self.image + (layer - self.image) * mask[..., None]

    def stencil(self, outlines: Iterable[Array]) -> Array:
        """The share ``[size, size]`` of each pixel that polygons ``[n, 2]`` or ``[k, n, 2]`` cover."""
        return self._drawn((outline, np.ones(3, dtype=np.float32)) for outline in outlines)[..., 3]

    def paint(self, shapes: Iterable[Shape], opacity: float = 1.0) -> None:
        """Paint polygons one over the other: ``[n, 2]`` in a colour ``[3]``, or ``[k, n, 2]`` in ``[k, 3]``."""
        layer = self._drawn(shapes)
        self.image = self.image + (layer[..., :3] - self.image) * (layer[..., 3:] * np.float32(opacity))

    def cast_shadows(self, outlines: Iterable[Array], length: float) -> None:
        """Darken the ground beside polygons, ``length`` units along the light."""
        shift = self.light * np.float32(length)
        mask = self.stencil(outline + shift for outline in outlines)
        self.image = self.image * (1 - np.float32(0.45) * mask)[..., None]

    def _drawn(self, shapes: Iterable[Shape]) -> Array:
        """RGBA ``[size, size, 4]`` of antialiased polygons."""
        scale, side = self.size * _SUPERSAMPLING / UNITS, self.size * _SUPERSAMPLING
        sheet = Image.new("RGBA", (side, side))
        pen = ImageDraw.Draw(sheet)
        for outline, colour in shapes:
            polygons = ((outline @ self._turn + UNITS / 2) * scale).reshape(-1, *outline.shape[-2:])
            seen = ((polygons.max(axis=1) > 0) & (polygons.min(axis=1) < side)).all(axis=1)
            levels = (np.clip(np.broadcast_to(colour, (len(polygons), 3)), 0, 1) * 255).astype(int)[seen]
            for polygon, (red, green, blue) in zip(polygons[seen], levels.tolist(), strict=True):
                pen.polygon(polygon.ravel().tolist(), fill=(red, green, blue, 255))
        layer: Array = np.asarray(sheet.reduce(_SUPERSAMPLING), dtype=np.float32) / np.float32(255)
        return layer


def rectangle(u: Lengths, v: Lengths, width: Lengths, height: Lengths) -> Array:
    """Corners ``[k, 4, 2]`` of rectangles centred on ``(u, v)``."""
    return _polygons(u, v, width, height, np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)]))


def disc(u: Lengths, v: Lengths, radius: Lengths) -> Array:
    """Round polygons ``[k, 12, 2]``."""
    turn = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    return _polygons(u, v, radius, radius, np.stack([np.cos(turn), np.sin(turn)], axis=1))


def _polygons(u: Lengths, v: Lengths, width: Lengths, height: Lengths, outline: npt.NDArray[np.float64]) -> Array:
    centres, sides = (
        np.stack(np.broadcast_arrays(*pair), axis=-1).reshape(-1, 1, 2) for pair in ((u, v), (width, height))
    )
    polygons: Array = (centres + sides * outline).astype(np.float32)
    return polygons


def band(path: Array, width: float, offset: float = 0.0) -> Array:
    """Outline ``[2n, 2]`` of a strip of some width along a path ``[n, 2]``, ``offset`` units to its side."""
    along = np.gradient(path, axis=0)
    across = np.stack([-along[:, 1], along[:, 0]], axis=1) / np.linalg.norm(along, axis=1, keepdims=True)
    sides = (path + across * (offset + width / 2), (path + across * (offset - width / 2))[::-1])
    return np.concatenate(sides).astype(np.float32)


def meander(canvas: Canvas, bend: float, offset: float) -> Array:
    """A path ``[40, 2]`` right across the tile that swings by about ``bend`` units."""
    u = np.linspace(-REACH - 8, REACH + 8, 40, dtype=np.float32)
    v = np.full_like(u, offset)
    for wavelength, share in ((110, 1.0), (55, 0.5), (28, 0.2)):
        phase, swing = canvas.rng.uniform(0, 2 * np.pi), canvas.rng.normal(0, bend * share)
        v += np.float32(swing) * np.sin(u * np.float32(2 * np.pi / wavelength) + np.float32(phase))
    return np.stack([u, v], axis=1)


def soil(canvas: Canvas, colour: Array, roughness: float = 0.10) -> None:
    """Bare or thinly grown ground over the whole tile."""
    canvas.cover(colour, canvas.noise(24, 4) * np.float32(roughness) + canvas.noise(2, 1) * np.float32(0.03))


def canopy(canvas: Canvas, colour: Array, mask: Array | None = None) -> None:
    """Closed forest: crowns that are lit from one side, in stands of different tone."""
    crowns = canvas.noise(canvas.rng.uniform(2.4, 4.2), 2)
    along_v, along_u = np.gradient(crowns)
    relief = (along_u * canvas.light[0] + along_v * canvas.light[1]) * np.float32(canvas.size / UNITS)
    shade = np.float32(canvas.rng.uniform(0.16, 0.28)) * relief + np.float32(0.10) * canvas.noise(26, 2)
    canvas.cover(colour, shade - np.float32(0.15) * np.clip(-crowns - 0.3, 0, 1.5), mask)


def water(canvas: Canvas, mask: Array | None = None) -> None:
    """A water surface: slow drifts of tone and faint ripples."""
    rng = canvas.rng
    heading = rng.uniform(0, 2 * np.pi)
    along = canvas.u * np.float32(np.cos(heading)) + canvas.v * np.float32(np.sin(heading))
    ripples = np.sin(along * np.float32(2 * np.pi / rng.uniform(3, 9)) + 2 * canvas.noise(14, 2))
    shade = np.float32(rng.uniform(0.02, 0.10)) * canvas.noise(40, 2) + np.float32(rng.uniform(0.0, 0.05)) * ripples
    canvas.cover(canvas.pick(WATERS), shade, mask)


def trees(canvas: Canvas, pitch: tuple[float, float], radius: float, disorder: float, presence: float) -> None:
    """Single trees with their shadows, in a share ``presence`` of the cells of a grid of ``pitch`` units.

    Crowns have a mean radius in units. ``disorder`` is how far a tree stands from its cell's centre, as a share of
    the room in the cell.
    """
    rng = canvas.rng
    u, v = (part.ravel() for part in np.meshgrid(*(np.arange(-REACH, REACH, step) for step in pitch)))
    stands = rng.uniform(size=u.shape) < presence
    u, v = (part[stands] + rng.uniform(-1, 1, stands.sum()) * disorder * max(0.0, step / 2 - radius)
            for part, step in zip((u, v), pitch, strict=True))  # fmt: skip
    radii = radius * rng.uniform(0.75, 1.2, len(u))
    toward_light = -0.3 * radius * canvas.light
    crowns, tops = disc(u, v, radii), disc(u + toward_light[0], v + toward_light[1], radii / 2)
    colours = canvas.vegetation() * rng.uniform(0.55, 0.8, (len(u), 1)).astype(np.float32)
    canvas.cast_shadows([crowns], radius * 0.8)
    canvas.paint([(crowns, colours), (tops, colours * np.float32(1.25))])


def fields(canvas: Canvas, smallest: float) -> None:
    """A patchwork of fields, each with its own crop, tone and direction of tillage.

    Strips narrower than twice ``smallest`` units are not split again.
    """
    rng = canvas.rng
    plots = split_plots(rng, smallest)
    count = len(plots)
    labels = np.zeros((canvas.size, canvas.size), dtype=int)
    for number, (left, top, right, bottom) in enumerate(plots):
        labels[(canvas.u >= left) & (canvas.u < right) & (canvas.v >= top) & (canvas.v < bottom)] = number
    bare = rng.uniform(size=(count, 1)) < 0.35
    colours = np.where(bare, canvas.pick_many(SOILS, count), canvas.vegetation(count))
    colours *= rng.uniform(0.8, 1.25, (count, 1)).astype(np.float32)
    heading = rng.choice([0, np.pi / 2], count) + rng.normal(0, 0.03, count)
    pace = 2 * np.pi / rng.uniform(2.2, 6.0, count)
    phase = canvas.u * (np.cos(heading) * pace)[labels] + canvas.v * (np.sin(heading) * pace)[labels]
    furrows = rng.uniform(0.08, 0.19, count)[labels] * np.sin(phase + 0.5 * canvas.noise(20, 2))
    canvas.image = (colours[labels] * (1 + furrows + 0.06 * canvas.noise(12, 4))[..., None]).astype(np.float32)
    edges = (labels != np.roll(labels, 1, 0)) | (labels != np.roll(labels, 1, 1))
    canvas.image[edges] += np.float32(rng.choice([-0.07, 0.07]))


def split_plots(rng: np.random.Generator, smallest: float, plot: Plot = _GROUND) -> list[Plot]:
    """Split a rectangle ``(left, top, right, bottom)`` at random until no side is twice ``smallest`` units."""
    left, top, right, bottom = plot
    width, height = right - left, bottom - top
    if max(width, height) < 2 * smallest or (max(width, height) < 3 * smallest and rng.uniform() < 0.3):
        return [plot]
    share = rng.uniform(0.35, 0.65)
    if width > height:
        middle = left + share * width
        halves = ((left, top, middle, bottom), (middle, top, right, bottom))
    else:
        middle = top + share * height
        halves = ((left, top, right, middle), (left, middle, right, bottom))
    return [part for half in halves for part in split_plots(rng, smallest, half)]


def countryside(canvas: Canvas) -> None:
    """The ground that roads and rivers run through: the surroundings say nothing about the class."""
    rng = canvas.rng
    kind = rng.uniform()
    if kind < 0.3:
        fields(canvas, rng.uniform(9, 18))
    elif kind < 0.6:
        canopy(canvas, canvas.vegetation() * np.float32(0.9))
    else:
        soil(canvas, canvas.pick(SOILS) if rng.uniform() < 0.5 else canvas.vegetation(), 0.12)
        trees(canvas, (6, 6), rng.uniform(0.9, 1.6), 1.0, rng.uniform(0.02, 0.35))


def photograph(canvas: Canvas) -> npt.NDArray[np.uint8]:
    """The pixels that a sensor gives of the scene, uint8 ``[size, size, 3]``: sun, haze, colour cast and noise."""
    rng = canvas.rng
    grey = canvas.image.mean(axis=2, keepdims=True)
    image = grey + (canvas.image - grey) * np.float32(rng.uniform(0.75, 1.2))
    haze = np.float32(rng.beta(1.2, 4.0) * 0.3)
    image = image * (1 - haze) + haze * np.array([0.62, 0.66, 0.72], dtype=np.float32)
    # Casts run from warm to cold as daylight does; a free one would make pink and purple ground.
    cast = rng.uniform(0.8, 1.2) * (1 + rng.normal(0, 0.05) * np.array([1, 0, -1]) + rng.normal(0, 0.02, 3))
    grain = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(1.0, 3.0))
    pixels: npt.NDArray[np.uint8] = np.clip(image * cast * 255 + grain + 0.5, 0, 255).astype(np.uint8)
    return pixels
