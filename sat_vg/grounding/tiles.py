"""Drawn overhead tiles with phrases, for a first run without data: things of several kinds on varied ground."""

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from sat_vg.backbone_finetuning.utils.errors import DataError
from sat_vg.backbone_finetuning.utils.safe_files import folder_aside
from sat_vg.backbone_finetuning.utils.seeding import Purpose, derive_seed, numpy_generator
from sat_vg.grounding.readers import Box

SIZE = 128
COUNTS = {"train": 1200, "val": 100, "test": 200}
_VERSION, _SEED = 1, 0  # of the drawings: others are drawn into another folder
_GROUNDS = ((96, 120, 72), (142, 128, 98), (84, 92, 96), (66, 98, 84), (120, 112, 104))
_COLOURS = {
    "red": (190, 52, 44), "blue": (52, 88, 184), "white": (234, 232, 226), "yellow": (222, 190, 60),
    "green": (48, 142, 66), "black": (34, 34, 38),
}  # fmt: skip
# Width and height in side lengths.
_SHAPES = {"house": (1.0, 0.8), "tank": (0.9, 0.9), "court": (1.3, 0.7), "plane": (1.0, 1.0), "ship": (1.4, 0.5)}
# Sign of the direction in x and y, at the border of the tile and beside another thing.
_PLACES = {"on the left": (-1, 0), "on the right": (1, 0), "at the top": (0, -1), "at the bottom": (0, 1)}
_BESIDE = {"to the left of": (-1, 0), "to the right of": (1, 0), "above": (0, -1), "below": (0, 1)}
_CLEAR = 14  # pixels by which one thing must lie farther out than the others to be "on the left"
_PHRASES_A_TILE = 5
_Colour = tuple[int, ...]


class _Thing(NamedTuple):
    kind: str
    colour: str
    side: int
    x: float
    y: float

    @property
    def box(self) -> Box:
        half_width, half_height = (self.side / 2 * factor for factor in _SHAPES[self.kind])
        return (self.x - half_width, self.y - half_height, self.x + half_width, self.y + half_height)

    def touches(self, other: "_Thing") -> bool:
        a, b = self.box, other.box
        return a[0] - 5 < b[2] and b[0] - 5 < a[2] and a[1] - 5 < b[3] and b[1] - 5 < a[3]

    def is_beyond(self, other: "_Thing", way: tuple[int, int], by: float = _CLEAR) -> bool:
        """Whether it lies farther out in a direction, by so many pixels."""
        return way[0] * self.x + way[1] * self.y >= way[0] * other.x + way[1] * other.y + by


def drawn_tiles(cache: Path) -> Path:
    """The folder of the drawn tiles in ``cache``: images, train.json, val.json and test.json; drawn once."""
    folder = cache / f"grounding_tiles_{_VERSION}_{_SEED}"
    try:
        if not folder.is_dir():
            with folder_aside(folder) as aside:
                _write_tiles(aside)
                aside.replace(folder)
    except OSError as error:
        if not folder.is_dir():  # else another process was first
            raise DataError(
                f"the built-in tiles cannot be kept in {str(cache)!r} ({error.strerror or error}); make room, or "
                "name another folder by SAT_VG_CACHE"
            ) from error
    return folder


def _write_tiles(folder: Path) -> None:
    (folder / "images").mkdir()
    for number, (split, count) in enumerate(COUNTS.items()):
        entries = []
        for index in range(count):
            generator = numpy_generator(derive_seed(_SEED, Purpose.SCENES, number, index))
            name, (image, things) = f"{split}_{index:04d}.png", _draw_tile(generator)
            image.save(folder / "images" / name)
            for phrase, thing in _phrases(things, generator):
                box = [round(side, 1) for side in thing.box]
                entries.append({"image": name, "phrase": phrase, "box": box, "box_format": "xyxy"})
        (folder / f"{split}.json").write_text(json.dumps(entries))


def _draw_tile(generator: np.random.Generator) -> tuple[Image.Image, list[_Thing]]:
    ground = np.array(_GROUNDS[generator.integers(len(_GROUNDS))]) + generator.normal(0, 10, 3)
    coarse = Image.fromarray(generator.integers(90, 166, (9, 9), dtype=np.uint8))
    coarse = coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    relief = (np.asarray(coarse, dtype=float) - 128)[..., None] * 0.5 + generator.normal(0, 5, (SIZE, SIZE, 3))
    image = Image.fromarray(np.clip(ground + relief, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    things: list[_Thing] = []
    for _ in range(40):
        kind, colour = (list(names)[generator.integers(len(names))] for names in (_SHAPES, _COLOURS))
        thing = _Thing(kind, colour, int(generator.integers(18, 38)), *generator.uniform(20, SIZE - 20, 2).tolist())
        fits = min(thing.box) >= 2 and max(thing.box) <= SIZE - 4
        if len(things) < 5 and fits and not any(map(thing.touches, things)):
            things.append(thing)
            paint = tuple(int(np.clip(value + generator.normal(0, 8), 0, 255)) for value in _COLOURS[colour])
            shadow = tuple(int(value) for value in np.clip(ground - 30, 0, 255))
            _draw(draw, kind, tuple(side + 2 for side in thing.box), shadow, shadow)
            _draw(draw, kind, thing.box, paint, tuple(value * 2 // 3 for value in paint))
    return image.filter(ImageFilter.GaussianBlur(0.5)), things


def _draw(draw: ImageDraw.ImageDraw, kind: str, box: tuple[float, ...], colour: _Colour, shade: _Colour) -> None:
    x1, y1, x2, y2 = box
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    if kind == "house":
        draw.rectangle(box, fill=colour)
        draw.line((x1, y, x2, y), fill=shade, width=2)
    elif kind == "tank":
        draw.ellipse(box, fill=colour, outline=shade, width=2)
    elif kind == "court":
        line = shade if colour == shade else (240, 240, 240)
        draw.rectangle(box, fill=colour, outline=line, width=1)
        draw.line((x, y1, x, y2), fill=line, width=1)
    elif kind == "plane":
        draw.line((x, y1, x, y2), fill=colour, width=4)
        draw.polygon(((x1, y + 3), (x, y - 6), (x2, y + 3), (x, y)), fill=colour)
    else:
        hull = ((x1, y), (x1 + 5, y1), (x2 - 5, y1), (x2, y), (x2 - 5, y2), (x1 + 5, y2))
        draw.polygon(hull, fill=colour)
        draw.line((x - 4, y, x + 4, y), fill=shade, width=3)


def _phrases(things: Sequence[_Thing], generator: np.random.Generator) -> list[tuple[str, _Thing]]:
    """Phrases that name one thing each, and no other one."""
    found = [(phrase, thing) for thing in things for phrase, is_true in _claims(thing, things).items() if is_true]
    chosen = generator.permutation(len(found))[:_PHRASES_A_TILE]
    return [found[place] for place in sorted(chosen)]


def _claims(thing: _Thing, things: Sequence[_Thing]) -> dict[str, bool]:
    """What may be said of a thing, and whether that tells it from all others."""
    others = [other for other in things if other is not thing]
    same = [other for other in others if other.kind == thing.kind]
    has_kin, kind = bool(same), thing.kind
    claims = {
        f"the {kind}": not has_kin,
        f"the {thing.colour} {kind}": all(thing.colour != other.colour for other in same),
        f"the large {kind}": has_kin and all(thing.side >= other.side + 6 for other in same),
        f"the small {kind}": has_kin and all(thing.side <= other.side - 6 for other in same),
    }
    for words, way in _PLACES.items():
        claims[f"the {kind} {words}"] = has_kin and all(thing.is_beyond(other, way) for other in same)
        claims[f"the thing {words}"] = all(thing.is_beyond(other, way) for other in others)
    kinds = [one.kind for one in things]
    for other, (words, way) in product(others, _BESIDE.items()):
        is_alone = has_kin and kinds.count(other.kind) == 1 and not any(one.is_beyond(other, way, 0) for one in same)
        claims[f"the {kind} {words} the {other.kind}"] = is_alone and thing.is_beyond(other, way)
    return claims
