"""The built-in data set: ten classes of satellite-like tiles, drawn on the spot and kept in a cache folder.

It stands in where the user names no data, so that everything can be tried without a download. The classes
share colours, seasons and surroundings on purpose: what tells them apart is texture and layout.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from sat_vg.backbone_finetuning.data.sources import scene_textures as draw
from sat_vg.backbone_finetuning.data.sources.folders import FOLDERS
from sat_vg.backbone_finetuning.data.sources.scene_textures import REACH, Canvas, Shape
from sat_vg.backbone_finetuning.data.sources.source import ImageQuery, Source
from sat_vg.backbone_finetuning.data.sources.splits import Splits
from sat_vg.backbone_finetuning.utils.cache_folder import cache_folder
from sat_vg.backbone_finetuning.utils.errors import DataError
from sat_vg.backbone_finetuning.utils.safe_files import folder_aside
from sat_vg.backbone_finetuning.utils.seeding import Purpose, derive_seed, numpy_generator

_VERSION = 2  # part of the cache folder's name: raise it whenever the same seed would draw other pixels
_SMALLEST = 16
_JPEG_QUALITY = 92


def _bare_soil(canvas: Canvas) -> None:
    rng = canvas.rng
    draw.soil(canvas, canvas.pick(draw.SOILS), rng.uniform(0.06, 0.16))
    # Ridged noise reads as rills and dry washes.
    rills = np.clip(0.35 - np.abs(canvas.noise(rng.uniform(16, 34), 3)), 0, 1)
    canvas.image = canvas.image * (1 + np.float32(rng.uniform(-0.7, 0.4)) * rills)[..., None]
    draw.trees(canvas, (6, 6), rng.uniform(0.7, 1.2), 1.0, rng.uniform(0, 0.15))


def _cropland(canvas: Canvas) -> None:
    draw.fields(canvas, canvas.rng.uniform(9, 17))


def _forest(canvas: Canvas) -> None:
    canvas.dryness *= 0.5  # woods wither less than grass does
    draw.soil(canvas, canvas.vegetation() * np.float32(1.2))
    closed = np.clip(3 * (canvas.noise(30, 3) + canvas.rng.uniform(0.8, 4)), 0, 1)
    draw.canopy(canvas, canvas.vegetation() * np.float32(0.8), closed)


def _harbor(canvas: Canvas) -> None:
    rng = canvas.rng
    draw.water(canvas)
    quay = rng.uniform(4, 24)
    land = canvas.stencil([draw.rectangle(0, quay + REACH, 3 * REACH, 2 * REACH)])
    canvas.cover(canvas.pick(draw.PAVINGS), 0.07 * canvas.noise(10, 4), land)
    piers = np.arange(-REACH, REACH, rng.uniform(9, 16)) + rng.uniform(0, 9)
    length = rng.uniform(14, 34)
    decks = draw.rectangle(piers, quay - length / 2, rng.uniform(1.0, 1.8), length)
    u, v = (part.ravel() for part in np.meshgrid(piers, quay - np.arange(1.5, length, rng.uniform(1.6, 2.6))))
    sides = rng.choice([-1, 1], len(u))
    boats = draw.rectangle(u + 2.4 * sides, v, rng.uniform(2.6, 4.2), rng.uniform(0.9, 1.3))
    boats = boats[rng.uniform(size=len(boats)) < rng.uniform(0.5, 0.9)]
    canvas.cast_shadows([decks, boats], 0.7)
    tones = canvas.pick_many(draw.ROOFS, len(boats))
    canvas.paint([(decks, canvas.pick(draw.PAVINGS)), (boats, tones)])


def _highway(canvas: Canvas) -> None:
    rng = canvas.rng
    draw.countryside(canvas)
    path = draw.meander(canvas, rng.uniform(0, 6), rng.uniform(-11, 11))
    lanes, median, asphalt = rng.uniform(3.0, 4.8), rng.uniform(0.8, 2.4), canvas.pick(draw.PAVINGS)
    verge = draw.band(path, 2 * lanes + median + rng.uniform(1.5, 5))
    canvas.paint([(verge, canvas.pick(draw.SOILS))], rng.uniform(0.4, 0.9))
    middle = (lanes + median) / 2
    shapes: list[Shape] = [(draw.band(path, lanes, side * middle), asphalt) for side in (-1, 1)]
    marking = np.full(3, min(1.0, float(asphalt.mean()) + 0.25), dtype=np.float32)
    shapes += [(draw.band(path, 0.45, side * (middle + lanes / 2 - 0.3)), marking) for side in (-1, 1)]
    cars = int(rng.integers(0, 16))
    places = path[rng.integers(4, len(path) - 4, cars)]
    outlines = draw.rectangle(places[:, 0], places[:, 1] + rng.choice([-1, 1], cars) * middle, 1.8, 0.9)
    canvas.paint([*shapes, (outlines, canvas.pick_many(draw.ROOFS, cars))])


def _industrial(canvas: Canvas) -> None:
    rng = canvas.rng
    draw.soil(canvas, canvas.pick(draw.PAVINGS if rng.uniform() < 0.7 else draw.SOILS), 0.09)
    plots = np.array(draw.split_plots(rng, rng.uniform(11, 18)), dtype=np.float32)
    (left, top, right, bottom), gap = plots[rng.uniform(size=len(plots)) < 0.9].T, rng.uniform(2.0, 4.5)
    width, height = np.maximum(right - left - 2 * gap, 3), np.maximum(bottom - top - 2 * gap, 3)
    u, v = (left + right) / 2, (top + bottom) / 2
    halls, tones = draw.rectangle(u, v, width, height), canvas.pick_many(draw.ROOFS, len(u))
    canvas.cast_shadows([halls], rng.uniform(0.8, 2.2))
    bays = draw.rectangle(u, v, width / rng.uniform(2, 5), height)
    canvas.paint([(halls, tones), (bays, tones * np.float32(0.9))])


def _orchard(canvas: Canvas) -> None:
    rng = canvas.rng
    ground = canvas.pick(draw.SOILS) if rng.uniform() < 0.6 else canvas.vegetation() * np.float32(1.25)
    draw.soil(canvas, ground, rng.uniform(0.04, 0.1))
    across = rng.uniform(4.6, 7.8)
    along = across * rng.uniform(0.75, 1.0)
    draw.trees(canvas, (along, across), along * rng.uniform(0.3, 0.4), rng.uniform(0, 0.3), rng.uniform(0.85, 1))


def _residential(canvas: Canvas) -> None:
    rng = canvas.rng
    lawn = canvas.vegetation() if rng.uniform() < 0.65 else canvas.pick(draw.SOILS)
    draw.soil(canvas, lawn * np.float32(rng.uniform(0.95, 1.25)), 0.10)
    deep, wide, lot = rng.uniform(13, 18), rng.uniform(26, 46), rng.uniform(4.8, 6.5)
    rows = np.arange(-REACH, REACH, deep) + rng.uniform(0, deep)
    columns = np.arange(-REACH, REACH, wide) + rng.uniform(0, wide)
    street = canvas.pick(draw.PAVINGS)
    along, across = draw.rectangle(0, rows, 2 * REACH, 2.2), draw.rectangle(columns, 0, 2.0, 2 * REACH)
    canvas.paint([(along, street), (across, street)])
    beside = np.concatenate([rows - deep * 0.28, rows + deep * 0.28])
    u, v = (part.ravel() for part in np.meshgrid(np.arange(-REACH, REACH, lot), beside))
    clear = np.abs(u[:, None] - columns).min(axis=1) > 0.5 * lot
    built = clear & (rng.uniform(size=u.shape) < rng.uniform(0.7, 0.95))
    count = int(built.sum())
    houses = draw.rectangle(u[built], v[built], rng.uniform(0.5, 0.75, count) * lot, rng.uniform(2.6, 4.2, count))
    canvas.cast_shadows([houses], rng.uniform(0.5, 1.1))
    canvas.paint([(houses, canvas.pick_many(draw.ROOFS, count))])
    draw.trees(canvas, (5, 5), rng.uniform(0.9, 1.4), 1.0, rng.uniform(0.05, 0.35))


def _river(canvas: Canvas) -> None:
    rng = canvas.rng
    draw.countryside(canvas)
    path, width = draw.meander(canvas, rng.uniform(4, 10), rng.uniform(-10, 10)), rng.uniform(9, 18)
    banks = canvas.pick(draw.SOILS) if rng.uniform() < 0.5 else canvas.vegetation() * np.float32(0.7)
    canvas.cover(banks, 0.15 * canvas.noise(5, 3), canvas.stencil([draw.band(path, width + rng.uniform(1, 5))]))
    draw.water(canvas, canvas.stencil([draw.band(path, width)]))


def _water(canvas: Canvas) -> None:
    rng = canvas.rng
    draw.water(canvas)
    if rng.uniform() < 0.4:
        shore = draw.meander(canvas, 5, rng.uniform(14, 28))
        corners = np.array([(REACH * 2, REACH * 2), (-REACH * 2, REACH * 2)], dtype=np.float32)
        land = canvas.stencil([np.concatenate([shore, corners])])
        ground = canvas.vegetation() if rng.uniform() < 0.6 else canvas.pick(draw.SOILS)
        canvas.cover(ground, 0.1 * canvas.noise(6, 4), land)


_PAINTERS: dict[str, Callable[[Canvas], None]] = {
    painter.__name__.removeprefix("_"): painter
    for painter in (
        _bare_soil, _cropland, _forest, _harbor, _highway, _industrial, _orchard, _residential, _river, _water
    )
}  # fmt: skip

SCENE_CLASSES: tuple[str, ...] = tuple(sorted(_PAINTERS))


def draw_scene(class_name: str, seed: int, size: int = 64) -> npt.NDArray[np.uint8]:
    """Draw one tile, uint8 RGB ``[size, size, 3]``, a pure function of its arguments.

    Args:
        class_name: one of ``SCENE_CLASSES``.
        seed: which of the class's tiles; any integer.
        size: height and width in pixels, at least 16.

    Raises:
        ValueError: there is no such class, or the tile is too small to show anything.
    """
    if class_name not in _PAINTERS:
        raise ValueError(f"there is no scene class {class_name!r}; there are {', '.join(SCENE_CLASSES)}")
    if size < _SMALLEST:
        raise ValueError(f"size is {size} pixels, but a scene needs at least {_SMALLEST}")
    position = SCENE_CLASSES.index(class_name)
    canvas = Canvas(numpy_generator(derive_seed(seed, Purpose.SCENES, position)), size)
    _PAINTERS[class_name](canvas)
    return draw.photograph(canvas)


def write_scenes(
    root: Path, *, train_per_class: int = 160, val_per_class: int = 40, size: int = 64, seed: int = 0
) -> None:
    """Write the data set as JPEG class folders: ``root/train/<class>/<class>_0000.jpg``, ``root/val/...``.

    A tile depends on the seed, its split, class and number only, so a smaller set is a part of a larger one. No tile
    of val is a training tile. Tiles have ``size`` pixels along each side; the seed is any integer.

    Raises:
        ValueError: the tiles are too small to show anything.
        OSError: the folder cannot be written to or the disk is full.
    """
    counts = {"train": train_per_class, "val": val_per_class}
    with tqdm(total=len(SCENE_CLASSES) * sum(counts.values()), desc="drawing scenes", disable=None) as bar:
        for part, (split, count) in enumerate(counts.items()):
            for class_name in SCENE_CLASSES:
                folder = root / split / class_name
                folder.mkdir(parents=True, exist_ok=True)
                for number in range(count):
                    tile = draw_scene(class_name, derive_seed(seed, Purpose.SCENES, part, number), size)
                    path = folder / f"{class_name}_{number:04d}.jpg"
                    Image.fromarray(tile).save(path, quality=_JPEG_QUALITY)
                    bar.update()


class Scenes(Source):
    """The source of the built-in scenes: of a run that names no images."""

    def takes(self, query: ImageQuery) -> bool:
        """See ``Source``."""
        return query.path is None and query.dataset is None

    def load_splits(self, query: ImageQuery) -> Splits:
        """See ``Source``."""
        return FOLDERS.load_splits(replace(query, path=str(scenes_folder())))


SCENES = Scenes()


def scenes_folder(
    cache_root: Path | None = None,
    *,
    seed: int = 0,
    train_per_class: int = 160,
    val_per_class: int = 40,
    size: int = 64,
) -> Path:
    """The data set's folder with ``train/`` and ``val/``, drawn the first time it is asked for.

    The folder is whole or not there, also when several processes ask at once. It is readable by its owner
    only, as is the cache folder where it has to be made: ``cache_root``, or that of ``cache_folder``. The other
    arguments are those of ``write_scenes``.

    Raises:
        DataError: the cache folder cannot be written to.
        ValueError: the tiles are too small to show anything.
    """
    cache = cache_folder() if cache_root is None else cache_root
    folder = cache / f"scenes-v{_VERSION}-seed{seed}-{size}px-{train_per_class}train-{val_per_class}val"
    parts = (folder / "train", folder / "val")
    try:
        if all(part.is_dir() for part in parts):
            return folder
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        with folder_aside(folder) as temporary:  # its mode is 0o700, and the rename keeps that
            write_scenes(
                temporary, train_per_class=train_per_class, val_per_class=val_per_class, size=size, seed=seed
            )
            try:
                temporary.rename(folder)
            except OSError:
                # A rename onto a folder with content fails: another process was first, and its folder is as good.
                if not all(part.is_dir() for part in parts):
                    raise
    except OSError as error:
        raise DataError(
            f"the built-in scenes cannot be kept in the cache folder {str(cache)!r}: {error.strerror or error}. "
            "Set SAT_VG_CACHE to a folder that can be written to and has some 10 MB free"
        ) from error
    return folder
