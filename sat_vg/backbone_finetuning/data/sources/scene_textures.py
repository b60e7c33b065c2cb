"""Drawing primitives of the built-in scenes: noise, antialiased shapes, trees, water, fields, the camera.

Lengths are in units of 1/64 of a tile's side, so that a tile of another size shows the same scene. Shapes
live in a frame that is centred on the tile and turned at random, because overhead images have no "up".
Colours are RGB in ``[0, 1]``.
"""

from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

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
ROOFS = _palette((0.58, 0.34, 0.26), (0.50, 0.42, 0.36), (0.66, 0.62, 0.58), (0.36, 0.34, 0.36), (0.62, 0.46, 0.34))
SHEDS = _palette((0.82, 0.82, 0.80), (0.62, 0.64, 0.66), (0.44, 0.54, 0.66), (0.58, 0.40, 0.34), (0.46, 0.46, 0.46))


class Canvas:
    """One tile being drawn: its pixels, its random stream, the turned frame and the light.

    Attributes:
        rng: the tile's random stream.
        image: float32 ``[size, size, 3]``, RGB in ``[0, 1]``.
        u: float32 ``[size, size]``, each pixel's first coordinate in the turned frame, in units; ``v`` likewise.
        light: float32 ``[2]``, unit vector in the turned frame that shadows fall along.
        dryness: season of the vegetation, 0 (lush) to 1 (dry or bare).
    """

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        self.rng = rng
        self.size = size
        self.image: Array = np.zeros((size, size, 3), dtype=np.float32)
        angle, light = rng.uniform(0, 2 * np.pi, 2)
        self._turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]], dtype=np.float32)
        self.light: Array = np.array([np.cos(light), np.sin(light)], dtype=np.float32)
        self.dryness = float(rng.beta(1.1, 1.3))
        axis = ((np.arange(size, dtype=np.float32) + 0.5) / size - 0.5) * UNITS
        x, y = axis[None, :], axis[:, None]
        self.u: Array = x * self._turn[0, 0] + y * self._turn[0, 1]
        self.v: Array = x * self._turn[1, 0] + y * self._turn[1, 1]

    def noise(self, cell: float, octaves: int = 3, gain: float = 0.6) -> Array:
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
            cell, amplitude = max(cell / 2, 1.0), amplitude * gain
        fractal: Array = total / np.float32(np.sqrt(power))
        return fractal

    def pick(self, palette: Array, spread: float = 0.02) -> Array:
        """A random mixture ``[3]`` of two of the palette's colours, a little off."""
        colour: Array = self.pick_many(palette, 1, spread)[0]
        return colour

    def pick_many(self, palette: Array, count: int, spread: float = 0.02) -> Array:
        """Several such mixtures, ``[count, 3]``."""
        first, second = palette[self.rng.integers(0, len(palette), (2, count))]
        mixture = first + (second - first) * self.rng.uniform(size=(count, 1))
        colours: Array = np.clip(mixture + self.rng.normal(0, spread, (count, 3)), 0.02, 0.98).astype(np.float32)
        return colours

    def vegetation(self) -> Array:
        """A colour ``[3]`` of plants in this tile's season."""
        colour: Array = self.crops(1)[0]
        return colour

    def crops(self, count: int) -> Array:
        """Several such colours, ``[count, 3]``."""
        lush, dry = self.pick_many(LUSH, count), self.pick_many(DRY, count)
        ripeness = np.clip(self.dryness + self.rng.normal(0, 0.15, (count, 1)), 0, 1).astype(np.float32)
        return lush + (dry - lush) * ripeness

    def relief(self, height: Array) -> Array:
        """How much brighter ``[size, size]`` a surface of this height is on the side that faces the light."""
        along_y, along_x = np.gradient(height)
        toward = self.light @ self._turn
        slope: Array = -(along_x * toward[0] + along_y * toward[1]) * np.float32(self.size / UNITS)
        return slope

    def cover(self, colour: Array, shade: Array, mask: Array | None = None) -> None:
        """Lay ``colour`` times ``1 + shade`` over the tile, where ``mask`` ``[size, size]`` lets it."""
        layer = colour * (1 + shade)[..., None]
        self.image = layer if mask is None else self.image + (layer - self.image) * mask[..., None]

    def stencil(self, outlines: Iterable[Array]) -> Array:
        """The share ``[size, size]`` of each pixel that polygons ``[n, 2]`` or ``[k, n, 2]`` cover."""
        sheet = Image.new("L", (self.size * _SUPERSAMPLING,) * 2)
        pen = ImageDraw.Draw(sheet)
        for outline in outlines:
            for polygon in self._to_sheet(outline)[0]:
                pen.polygon(polygon, fill=255)
        share: Array = np.asarray(sheet.reduce(_SUPERSAMPLING), dtype=np.float32) / np.float32(255)
        return share

    def paint(self, shapes: Iterable[Shape], opacity: float = 1.0) -> None:
        """Paint polygons one over the other: ``[n, 2]`` in a colour ``[3]``, or ``[k, n, 2]`` in ``[k, 3]``."""
        sheet = Image.new("RGBA", (self.size * _SUPERSAMPLING,) * 2)
        pen = ImageDraw.Draw(sheet)
        for outline, colour in shapes:
            polygons, seen = self._to_sheet(outline)
            levels = (np.clip(colour, 0, 1) * 255).astype(int).reshape(-1, 3)[seen].tolist()
            for polygon, (red, green, blue) in zip(polygons, levels, strict=True):
                pen.polygon(polygon, fill=(red, green, blue, 255))
        layer = np.asarray(sheet.reduce(_SUPERSAMPLING), dtype=np.float32) / 255
        self.image = self.image + (layer[..., :3] - self.image) * (layer[..., 3:] * np.float32(opacity))

    def cast_shadows(self, outlines: Iterable[Array], length: float, opacity: float = 0.45) -> None:
        """Darken the ground beside polygons, ``length`` units along the light."""
        shift = self.light * np.float32(length)
        mask = self.stencil(outline + shift for outline in outlines)
        self.image = self.image * (1 - np.float32(opacity) * mask)[..., None]

    def _to_sheet(self, outline: Array) -> tuple[list[list[float]], npt.NDArray[np.bool_]]:
        """Flat pixel coordinates of the polygons that touch the tile, and which ones those are."""
        scale = np.float32(self.size * _SUPERSAMPLING / UNITS)
        pixels = ((outline @ self._turn + UNITS / 2) * scale).reshape(-1, *outline.shape[-2:])
        inside = (pixels.max(axis=1) > 0) & (pixels.min(axis=1) < self.size * _SUPERSAMPLING)
        seen = inside.all(axis=1)
        return pixels[seen].reshape(int(seen.sum()), 2 * outline.shape[-2]).tolist(), seen


def rectangle(u: Lengths, v: Lengths, width: Lengths, height: Lengths) -> Array:
    """Corners ``[4, 2]`` of a rectangle centred on ``(u, v)``, or ``[k, 4, 2]`` of several."""
    centres = np.stack(np.broadcast_arrays(u, v), axis=-1)[..., None, :]
    sides = np.stack(np.broadcast_arrays(width, height), axis=-1)[..., None, :]
    corners = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
    outlines: Array = (centres + sides * corners).astype(np.float32)
    return outlines


def disc(u: float, v: float, radius: float) -> Array:
    """A round polygon ``[16, 2]``."""
    turn = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    return np.stack([u + radius * np.cos(turn), v + radius * np.sin(turn)], axis=1).astype(np.float32)


def band(path: Array, width: float | Array, offset: float = 0.0) -> Array:
    """Outline ``[2n, 2]`` of a strip of some width along a path ``[n, 2]``, ``offset`` units to its side."""
    along = np.gradient(path, axis=0)
    across = np.stack([-along[:, 1], along[:, 0]], axis=1) / np.linalg.norm(along, axis=1, keepdims=True)
    half = np.broadcast_to(np.asarray(width, dtype=np.float32), (len(path),))[:, None] / 2
    return np.concatenate([path + across * (offset + half), (path + across * (offset - half))[::-1]]).astype(
        np.float32
    )


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
    """Closed forest: lit crowns with dark gaps between, in stands of different tone."""
    crowns = canvas.noise(canvas.rng.uniform(2.4, 4.2), 2, 0.8)
    stands = canvas.noise(26, 2)
    gaps = np.clip(-crowns - 0.3, 0, 1.5)
    strength = canvas.rng.uniform(0.16, 0.28)
    shade = np.float32(strength) * canvas.relief(crowns) - np.float32(0.15) * gaps + np.float32(0.10) * stands
    canvas.cover(colour, shade, mask)


def water(canvas: Canvas, colour: Array, mask: Array | None = None) -> None:
    """A water surface: slow drifts of tone, faint ripples, now and then sun glint."""
    rng = canvas.rng
    drift = canvas.noise(40, 2)
    heading = rng.uniform(0, 2 * np.pi)
    along = canvas.u * np.float32(np.cos(heading)) + canvas.v * np.float32(np.sin(heading))
    ripples = np.sin(along * np.float32(2 * np.pi / rng.uniform(3, 9)) + 2 * canvas.noise(14, 2))
    shade = np.float32(rng.uniform(0.02, 0.10)) * drift + np.float32(rng.uniform(0.0, 0.05)) * ripples
    if rng.uniform() < 0.1:
        shade = shade + np.float32(0.2) * np.clip(canvas.noise(2.5, 1) + drift - 1, 0, 2)
    canvas.cover(colour, shade, mask)


def trees(canvas: Canvas, pitch: tuple[float, float], radius: float, disorder: float, presence: float) -> None:
    """Single trees with their shadows, one per cell of a grid of ``pitch`` units.

    Args:
        canvas: the tile.
        pitch: cell size in units.
        radius: mean crown radius in units.
        disorder: how far a tree stands from its cell's centre, as a share of the room in the cell.
        presence: share of cells with a tree.
    """
    rng = canvas.rng
    cells = (int(2 * REACH / pitch[0]) + 4, int(2 * REACH / pitch[1]) + 4)
    radii = (radius * rng.uniform(0.75, 1.2, cells) * (rng.uniform(size=cells) < presence)).astype(np.float32)
    room = disorder * np.maximum(0, np.array(pitch) / 2 - radius)
    stray = (rng.uniform(-1, 1, (*cells, 2)) * room).astype(np.float32)
    tone = rng.normal(0, 0.08, cells).astype(np.float32)

    def crowns(shift: Array) -> tuple[Array, Array, Array]:
        u, v = canvas.u - shift[0], canvas.v - shift[1]
        column, row = np.rint(u / pitch[0]).astype(int), np.rint(v / pitch[1]).astype(int)
        place = (column + cells[0] // 2, row + cells[1] // 2)
        distance = np.hypot(u - column * pitch[0] - stray[place][..., 0], v - row * pitch[1] - stray[place][..., 1])
        edge = np.clip((radii[place] - distance) * np.float32(canvas.size / UNITS) + 0.5, 0, 1) * (radii[place] > 0)
        dome = np.sqrt(np.clip(1 - (distance / np.maximum(radii[place], 0.1)) ** 2, 0, 1))
        return edge.astype(np.float32), dome.astype(np.float32), tone[place]

    shadow, _, _ = crowns(canvas.light * np.float32(radius * 0.8))
    canvas.image = canvas.image * (1 - np.float32(0.5) * shadow)[..., None]
    edge, dome, tint = crowns(np.zeros(2, dtype=np.float32))
    canvas.cover(canvas.vegetation() * np.float32(0.68), 0.35 * canvas.relief(dome) + tint, edge)


def fields(canvas: Canvas, smallest: float) -> None:
    """A patchwork of fields, each with its own crop, tone and direction of tillage.

    Args:
        canvas: the tile.
        smallest: strips narrower than twice this many units are not split again.
    """
    rng = canvas.rng
    plots = split_plots(rng, smallest)
    slant, bow = rng.normal(0, 0.12, 2)
    # The labels need no antialiasing: the balks between the fields are drawn over the edges.
    labels = np.zeros((canvas.size, canvas.size), dtype=int)
    u = canvas.u + np.float32(slant) * canvas.v
    v = canvas.v + np.float32(bow) * canvas.u
    for number, (left, top, right, bottom) in enumerate(plots):
        labels[(u >= left) & (u < right) & (v >= top) & (v < bottom)] = number
    count = len(plots)
    bare = rng.uniform(size=(count, 1)) < 0.35
    colours = np.where(bare, canvas.pick_many(SOILS, count), canvas.crops(count))
    colours *= rng.uniform(0.8, 1.25, (count, 1)).astype(np.float32)
    heading = rng.choice([0, np.pi / 2], count) + rng.normal(0, 0.03, count)
    pace = 2 * np.pi / rng.uniform(2.2, 6.0, count)
    strength = (rng.uniform(0.08, 0.19, count)).astype(np.float32)
    phase = (u * (np.cos(heading) * pace)[labels] + v * (np.sin(heading) * pace)[labels]).astype(np.float32)
    shade = strength[labels] * np.sin(phase + 0.5 * canvas.noise(20, 2)) + np.float32(0.06) * canvas.noise(12, 4)
    canvas.image = colours[labels] * (1 + shade)[..., None]
    edges = (labels != np.roll(labels, 1, 0)) | (labels != np.roll(labels, 1, 1))
    canvas.image[edges] += np.float32(rng.choice([-0.09, 0.08])) * np.float32(rng.uniform(0.6, 1.1))


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


def moored_boats(canvas: Canvas, piers: Lengths, quay: float, reach: Lengths) -> Array:
    """Boats ``[k, 5, 2]`` on both sides of the piers, bows outward."""
    rng = canvas.rng
    length, width = rng.uniform(2.6, 4.2), rng.uniform(1.1, 1.7)
    berths = np.arange(1.5, 40, width * 1.45)
    pier, distance, side = (a.ravel() for a in np.meshgrid(np.arange(np.size(piers)), berths, (-1, 1), indexing="ij"))
    taken = (distance < np.asarray(reach)[pier]) & (rng.uniform(size=pier.shape) < rng.uniform(0.4, 0.9))
    side = side[taken]
    return hulls(np.asarray(piers)[pier[taken]] + 0.8 * side, quay - distance[taken], length * side, width)


def hulls(u: Lengths, v: Lengths, length: Lengths, width: float) -> Array:
    """Boats ``[..., 5, 2]`` with their sterns at ``(u, v)``; a negative length points the bow the other way."""
    outline = np.array([(0, -0.5), (0.6, -0.5), (1, 0), (0.6, 0.5), (0, 0.5)])
    along = np.asarray(u)[..., None] + np.asarray(length)[..., None] * outline[:, 0]
    across = np.asarray(v)[..., None] + width * outline[:, 1]
    return np.stack([along, across], axis=-1).astype(np.float32)


def hall_roof(canvas: Canvas, u: float, v: float, width: float, height: float) -> Shape:
    """A hall's roof: the outline first, then bays of slightly different tone, then vents."""
    rng = canvas.rng
    bays, vents = int(rng.integers(1, 6)), int(rng.integers(0, 5))
    bay_centres = u - width / 2 + (np.arange(0, bays, 2) + 0.5) * width / bays
    spots = rng.uniform(-0.4, 0.4, (vents, 2)) * (width, height) + (u, v)
    outlines = [
        rectangle(u, v, width, height)[None],
        rectangle(bay_centres, v, width / bays, height),
        rectangle(spots[:, 0], spots[:, 1], 1.2, 1.2),
    ]
    shade = [np.ones(1), rng.uniform(0.86, 0.97, len(bay_centres)), rng.choice([0.6, 1.2], vents)]
    return np.concatenate(outlines), canvas.pick(SHEDS) * np.concatenate(shade)[:, None].astype(np.float32)


def parked_vehicles(canvas: Canvas, u: float, v: float, width: float, height: float) -> Shape:
    """Rows of lorries and cars in a yard."""
    rng = canvas.rng
    rows = np.arange(v - height / 2, v + height / 2, 4.0)
    places = np.arange(u - width / 2, u + width / 2, 1.7)
    across, along = (a.ravel() for a in np.meshgrid(places, rows))
    taken = rng.uniform(size=across.shape) < 0.6
    outlines = rectangle(across[taken], along[taken], 1.0, 2.2)
    dimming = rng.uniform(0.4, 1.1, (len(outlines), 1)).astype(np.float32)
    return outlines, canvas.pick_many(SHEDS, len(outlines)) * dimming


def houses_along(canvas: Canvas, rows: Lengths, columns: Lengths) -> Array:
    """Houses ``[k, 4, 2]`` along the rows, none of them on a cross street."""
    rng = canvas.rng
    lot = rng.uniform(4.8, 6.5)
    u, v = np.meshgrid(np.arange(-REACH, REACH, lot), rows)
    u, v = (u + rng.uniform(0, lot, (len(u), 1))).ravel(), (v + rng.normal(0, 0.4, v.shape)).ravel()
    clear = np.abs(u[:, None] - columns).min(axis=1) > 0.5 * lot
    built = clear & (rng.uniform(size=u.shape) < rng.uniform(0.7, 0.95))
    count = int(built.sum())
    return rectangle(u[built], v[built], rng.uniform(0.5, 0.75, count) * lot, rng.uniform(2.6, 4.2, count))


def countryside(canvas: Canvas) -> None:
    """What roads and rivers run through: the surroundings say nothing about the class."""
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
    """What a sensor makes of the scene: sun, haze, cloud, colour cast, blur and noise.

    Returns:
        uint8 ``[size, size, 3]``, RGB.
    """
    rng = canvas.rng
    image = canvas.image
    if rng.uniform() < 0.06:
        veil = np.clip(canvas.noise(44, 3, 0.4) * 0.3, 0, 0.5).astype(np.float32)[..., None]
        image = image * (1 - veil) + veil * np.float32(rng.choice([0.0, 0.75]))
    grey = image.mean(axis=2, keepdims=True)
    image = grey + (image - grey) * np.float32(rng.uniform(0.75, 1.2))
    haze = np.float32(rng.beta(1.2, 4.0) * 0.3)
    image = image * (1 - haze) + haze * np.array([0.62, 0.66, 0.72], dtype=np.float32)
    # Casts run from warm to cold as daylight does; a free one would make pink and purple ground.
    cast = rng.uniform(0.8, 1.2) * (1 + rng.normal(0, 0.05) * np.array([1, 0, -1]) + rng.normal(0, 0.02, 3))
    slope = 1 + 0.002 * rng.normal() * canvas.u
    image = np.clip(image * cast.astype(np.float32) * slope.astype(np.float32)[..., None], 0, 1)
    blurred = Image.fromarray((image * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.4)))
    grain = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(1.0, 3.0))
    pixels: npt.NDArray[np.uint8] = np.clip(np.asarray(blurred, dtype=np.float32) + grain + 0.5, 0, 255).astype(
        np.uint8
    )
    return pixels
