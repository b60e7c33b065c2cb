"""Mosaics of labelled tiles with phrases: what the study of grounding trains and measures on."""

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sat_vg.grounding.readers import Box, Record

SIDE, TILE = 128, 64  # pixels of a mosaic, and of a tile before it is cropped to its cell
COUNTS = {"train": 2500, "val": 100, "test": 400}  # mosaics
SCENES = {"train": 2700, "val": 300}  # mosaics with one label, for the fine-tuning of backbones
PHRASES = 5  # of a mosaic at most
# Share of the tiles of a class that go to the backbone's fine-tuning and to the mosaics; most tiles of each.
SHARES = {"finetune": (0.5, 600), "train": (0.25, 500), "val": (0.05, 100), "test": (0.2, 400)}
CELLS = [(row, column) for row in range(3) for column in range(3)]


@dataclass(frozen=True)
class Mosaics:
    """Mosaics of a split.

    Attributes:
        images: uint8 ``[N, 3, SIDE, SIDE]``.
        records: their phrases; the image of a record is its number, as text.
    """

    images: Tensor
    records: Sequence[Record]


def split_tiles(root: Path) -> dict[str, dict[str, list[Path]]]:
    """Tiles by use and class. No tile has two uses; the split is the same on every machine."""
    uses: dict[str, dict[str, list[Path]]] = {use: {} for use in SHARES}
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        files = sorted(path for path in folder.iterdir() if path.is_file())
        random.Random(folder.name).shuffle(files)
        first = 0
        for use, (share, most) in SHARES.items():
            count = int(share * len(files))
            uses[use][folder.name] = files[first : first + min(count, most)]
            first += count
    return uses


def make_mosaics(tiles: Mapping[str, Sequence[Path]], split: str, name: str) -> Mosaics:
    """Mosaics of a split: nine tiles of four to six classes in a grid whose lines lie differently in each image.

    Args:
        tiles: by class.
        split: of ``COUNTS``.
        name: of the data; it and the split seed the drawing.
    """
    draw = random.Random(f"{name}/{split}")
    images = np.zeros((COUNTS[split], SIDE, SIDE, 3), dtype=np.uint8)
    records: list[Record] = []
    for number, image in enumerate(images):
        classes, boxes = _draw_classes(draw, tiles), _cells_of(draw)
        _fill(image, draw, classes, boxes, tiles)
        found = sorted(phrases_of(classes))
        for phrase, cell in draw.sample(found, min(PHRASES, len(found))):
            box: Box = tuple(map(float, boxes[cell]))  # type: ignore[assignment]
            records.append(Record(f"{number}", phrase, box, f"{split} {number}"))
    return Mosaics(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), records)


def make_scenes(tiles: Mapping[str, Sequence[Path]], name: str, folder: Path) -> None:
    """Mosaics with one label, as images of many things have: the class of most cells, where one has more than others.

    They are written as ``folder/train/CLASS/NUMBER.jpg`` and ``folder/val/...``.
    """
    draw = random.Random(f"{name}/scenes")
    image = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    for split, count in SCENES.items():
        for number in range(count):
            label = None
            while label is None:
                classes = _draw_classes(draw, tiles)
                (label, most), *others = Counter(classes).most_common()
                label = None if others and others[0][1] == most else label
            _fill(image, draw, classes, _cells_of(draw), tiles)
            path = folder / split / label / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path, quality=95)


@cache
def _pixels_of(tile: Path) -> np.ndarray:
    """uint8 ``[TILE, TILE, 3]``."""
    return np.asarray(Image.open(tile).convert("RGB").resize((TILE, TILE), Image.Resampling.BOX))


def _draw_classes(draw: random.Random, tiles: Mapping[str, Sequence[Path]]) -> list[str]:
    """The classes of nine cells, four to six at most."""
    palette = draw.sample(sorted(tiles), draw.randint(4, 6))
    return [draw.choice(palette) for _ in CELLS]


def _fill(
    image: np.ndarray,
    draw: random.Random,
    classes: Sequence[str],
    boxes: Sequence[tuple[int, int, int, int]],
    tiles: Mapping[str, Sequence[Path]],
) -> None:
    """Fill each cell with a random part of a random tile of its class."""
    for kind, (x1, y1, x2, y2) in zip(classes, boxes, strict=True):
        tile = _pixels_of(draw.choice(tiles[kind]))
        top, left = draw.randint(0, TILE - (y2 - y1)), draw.randint(0, TILE - (x2 - x1))
        image[y1:y2, x1:x2] = tile[top : top + y2 - y1, left : left + x2 - x1]


def _cells_of(draw: random.Random) -> list[tuple[int, int, int, int]]:
    """Corners of the nine cells, each 32 to 56 pixels wide and high."""
    columns, rows = ([0, *_lines(draw), SIDE] for _ in range(2))
    return [(columns[x], rows[y], columns[x + 1], rows[y + 1]) for y, x in CELLS]


def _lines(draw: random.Random) -> tuple[int, int]:
    while True:
        first, second = draw.randint(32, 56), draw.randint(72, 96)
        if 32 <= second - first <= 56:
            return first, second


def phrases_of(classes: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Phrases, each with the cell that it names; none names two."""
    words = [words_of(kind) for kind in classes]
    for cell, (name, (row, column)) in enumerate(zip(words, CELLS, strict=True)):
        same = [CELLS[other] for other in range(9) if words[other] == name and other != cell]
        if not same:
            yield f"the {name}", cell
            continue
        outward = {"at the top": -row, "at the bottom": row, "on the left": -column, "on the right": column}
        others = [{"at the top": -y, "at the bottom": y, "on the left": -x, "on the right": x} for y, x in same]
        for where, value in outward.items():
            if all(value > other[where] for other in others):
                yield f"the {name} {where}", cell
        for where, (down, right) in _BESIDE.items():
            yield from _beside(words, cell, where, (row - down, column - right), (down, right))


_BESIDE = {"above": (-1, 0), "below": (1, 0), "to the left of": (0, -1), "to the right of": (0, 1)}


def _beside(
    words: Sequence[str], cell: int, where: str, anchor: tuple[int, int], step: tuple[int, int]
) -> Iterator[tuple[str, int]]:
    """ "the A above the B", where A lies right above B and no other A lies right above any B."""
    if anchor not in CELLS or words[CELLS.index(anchor)] == words[cell]:
        return
    pair = (words[cell], words[CELLS.index(anchor)])
    pairs = [
        (words[number], words[CELLS.index((row - step[0], column - step[1]))])
        for number, (row, column) in enumerate(CELLS)
        if (row - step[0], column - step[1]) in CELLS
    ]
    if pairs.count(pair) == 1:
        yield f"the {pair[0]} {where} the {pair[1]}", cell


def words_of(kind: str) -> str:
    """ "AnnualCrop" → "annual crop"; classes in one word stay so."""
    return "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in kind).strip()
