"""Drawn overhead tiles with phrases, for a first run without data: things of several kinds on varied ground."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from sat_vg.backbone_finetuning.utils.safe_files import folder_aside
from sat_vg.backbone_finetuning.utils.seeding import Purpose, derive_seed, numpy_generator
from sat_vg.grounding.readers import Box

SIZE = 128
COUNTS = {"train": 1200, "val": 100, "test": 200}
_VERSION = 1  # of the drawings: another one is drawn into another folder
_GROUNDS = ((96, 120, 72), (142, 128, 98), (84, 92, 96), (66, 98, 84), (120, 112, 104))
_COLOURS = {
    "red": (190, 52, 44), "blue": (52, 88, 184), "white": (234, 232, 226), "yellow": (222, 190, 60),
    "green": (48, 142, 66), "black": (34, 34, 38),
}  # fmt: skip
_CLEAR = 14  # pixels by which one thing must lie farther out than the others to be "on the left"
_PHRASES_A_TILE = 5


@dataclass(frozen=True)
class _Thing:
    kind: str
    colour: str
    side: int
    x: float
    y: float

    @property
    def box(self) -> Box:
        half_width, half_height = (self.side / 2 * factor for factor in _SHAPES[self.kind][0])
        return (self.x - half_width, self.y - half_height, self.x + half_width, self.y + half_height)


def _house(draw: ImageDraw.ImageDraw, box: Box, colour: tuple[int, ...], shade: tuple[int, ...]) -> None:
    draw.rectangle(box, fill=colour)
    draw.line((box[0], (box[1] + box[3]) / 2, box[2], (box[1] + box[3]) / 2), fill=shade, width=2)


def _tank(draw: ImageDraw.ImageDraw, box: Box, colour: tuple[int, ...], shade: tuple[int, ...]) -> None:
    draw.ellipse(box, fill=colour, outline=shade, width=2)


def _court(draw: ImageDraw.ImageDraw, box: Box, colour: tuple[int, ...], shade: tuple[int, ...]) -> None:
    line = shade if colour == shade else (240, 240, 240)
    draw.rectangle(box, fill=colour, outline=line, width=1)
    middle = (box[0] + box[2]) / 2
    draw.line((middle, box[1], middle, box[3]), fill=line, width=1)


def _plane(draw: ImageDraw.ImageDraw, box: Box, colour: tuple[int, ...], shade: tuple[int, ...]) -> None:
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    draw.line((x, box[1], x, box[3]), fill=colour, width=4)
    draw.polygon(((box[0], y + 3), (x, y - 6), (box[2], y + 3), (x, y)), fill=colour)


def _ship(draw: ImageDraw.ImageDraw, box: Box, colour: tuple[int, ...], shade: tuple[int, ...]) -> None:
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    draw.polygon(((box[0], y), (box[0] + 5, box[1]), (box[2] - 5, box[1]), (box[2], y), (box[2] - 5, box[3]),
                  (box[0] + 5, box[3])), fill=colour)  # fmt: skip
    draw.line((x - 4, y, x + 4, y), fill=shade, width=3)


# Width and height by side length, and how it is drawn.
_SHAPES: dict[str, tuple[tuple[float, float], Callable[..., None]]] = {
    "house": ((1.0, 0.8), _house),
    "tank": ((0.9, 0.9), _tank),
    "court": ((1.3, 0.7), _court),
    "plane": ((1.0, 1.0), _plane),
    "ship": ((1.4, 0.5), _ship),
}


def drawn_tiles(cache: Path, seed: int = 0) -> Path:
    """The folder of the drawn tiles: images and ``train.json``, ``val.json``, ``test.json``; drawn once.

    Args:
        cache: folder in which they are kept.
        seed: of the drawings.
    """
    folder = cache / f"grounding_tiles_{_VERSION}_{seed}"
    if not folder.is_dir():
        with folder_aside(folder) as aside:
            (aside / "images").mkdir()
            for number, (split, count) in enumerate(COUNTS.items()):
                entries = []
                for index in range(count):
                    generator = numpy_generator(derive_seed(seed, Purpose.SCENES, number, index))
                    name = f"{split}_{index:04d}.png"
                    image, things = _draw_tile(generator)
                    image.save(aside / "images" / name)
                    entries += [
                        {
                            "image": name,
                            "phrase": phrase,
                            "box": [round(side, 1) for side in thing.box],
                            "box_format": "xyxy",
                        }
                        for phrase, thing in _phrases(things, generator)
                    ]
                (aside / f"{split}.json").write_text(json.dumps(entries))
            if not folder.is_dir():
                aside.replace(folder)
    return folder


def _draw_tile(generator: np.random.Generator) -> tuple[Image.Image, list[_Thing]]:
    ground = np.array(_GROUNDS[generator.integers(len(_GROUNDS))]) + generator.normal(0, 10, 3)
    coarse = Image.fromarray(generator.integers(90, 166, (9, 9), dtype=np.uint8)).resize(
        (SIZE, SIZE), Image.Resampling.BICUBIC
    )
    relief = (np.asarray(coarse, dtype=float) - 128)[..., None] * 0.5 + generator.normal(0, 5, (SIZE, SIZE, 3))
    image = Image.fromarray(np.clip(ground + relief, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    things: list[_Thing] = []
    for _ in range(40):
        thing = _Thing(
            list(_SHAPES)[generator.integers(len(_SHAPES))],
            list(_COLOURS)[generator.integers(len(_COLOURS))],
            int(generator.integers(18, 38)),
            *(float(value) for value in generator.uniform(20, SIZE - 20, 2)),
        )
        if len(things) < 5 and not any(_touch(thing.box, other.box) for other in things) and _fits(thing.box):
            things.append(thing)
            colour = tuple(int(np.clip(value + generator.normal(0, 8), 0, 255)) for value in _COLOURS[thing.colour])
            shade = tuple(value * 2 // 3 for value in colour)
            shadow = tuple(int(value) for value in np.clip(ground - 30, 0, 255))
            shape = _SHAPES[thing.kind][1]
            shape(draw, tuple(side + 2 for side in thing.box), shadow, shadow)
            shape(draw, thing.box, colour, shade)
    return image.filter(ImageFilter.GaussianBlur(0.5)), things


def _fits(box: Box) -> bool:
    return box[0] >= 2 and box[1] >= 2 and box[2] <= SIZE - 4 and box[3] <= SIZE - 4


def _touch(a: Box, b: Box) -> bool:
    return a[0] - 5 < b[2] and b[0] - 5 < a[2] and a[1] - 5 < b[3] and b[1] - 5 < a[3]


def _phrases(things: Sequence[_Thing], generator: np.random.Generator) -> list[tuple[str, _Thing]]:
    """Phrases that name one thing each, and no other one."""
    found = [pair for thing in things for pair in _phrases_about(thing, things)]
    chosen = generator.permutation(len(found))[:_PHRASES_A_TILE]
    return [found[place] for place in sorted(chosen)]


def _phrases_about(thing: _Thing, things: Sequence[_Thing]) -> list[tuple[str, _Thing]]:
    same = [other for other in things if other.kind == thing.kind and other is not thing]
    phrases = [] if same else [f"the {thing.kind}"]
    if not any(other.colour == thing.colour for other in same):
        phrases.append(f"the {thing.colour} {thing.kind}")
    if same and all(thing.side >= other.side + 6 for other in same):
        phrases.append(f"the large {thing.kind}")
    if same and all(thing.side <= other.side - 6 for other in same):
        phrases.append(f"the small {thing.kind}")
    for words, outward in _OUTWARD.items():
        if same and all(outward(thing) >= outward(other) + _CLEAR for other in same):
            phrases.append(f"the {thing.kind} {words}")
        if all(outward(thing) >= outward(other) + _CLEAR for other in things if other is not thing):
            phrases.append(f"the thing {words}")
    return [(phrase, thing) for phrase in phrases + _relations(thing, things, same)]


def _relations(thing: _Thing, things: Sequence[_Thing], same: Sequence[_Thing]) -> list[str]:
    """Phrases that tell a thing from others of its kind by where it is beside something else."""
    phrases = []
    for other in things:
        alone = sum(one.kind == other.kind for one in things) == 1
        if alone and same and other.kind != thing.kind:
            for words, outward in _BESIDE.items():
                if outward(thing) >= outward(other) + _CLEAR and all(outward(one) < outward(other) for one in same):
                    phrases.append(f"the {thing.kind} {words} the {other.kind}")
    return phrases


_OUTWARD: dict[str, Callable[[_Thing], float]] = {
    "on the left": lambda thing: -thing.x,
    "on the right": lambda thing: thing.x,
    "at the top": lambda thing: -thing.y,
    "at the bottom": lambda thing: thing.y,
}
_BESIDE: dict[str, Callable[[_Thing], float]] = {
    "to the left of": lambda thing: -thing.x,
    "to the right of": lambda thing: thing.x,
    "above": lambda thing: -thing.y,
    "below": lambda thing: thing.y,
}
