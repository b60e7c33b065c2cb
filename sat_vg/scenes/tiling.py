"""``sat-vg tile``: windows of scenes with their classes, as class folders or as a table of references."""

import csv
import hashlib
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from shlex import quote

import numpy as np

from sat_vg.backbone_finetuning.commands.output_folder import explaining_writing
from sat_vg.backbone_finetuning.data.reading.threads import run_in_order
from sat_vg.backbone_finetuning.data.sources.class_folders import is_hidden
from sat_vg.backbone_finetuning.data.sources.spatial_split import LEFT_OUT, TEST, TRAIN, VAL, split_blocks
from sat_vg.backbone_finetuning.data.windows.opened import encode_window, open_scene
from sat_vg.backbone_finetuning.data.windows.paths import WindowPath
from sat_vg.backbone_finetuning.data.windows.places import Footprint, boxes_in_metres, corners_of
from sat_vg.backbone_finetuning.data.windows.scene import Scene
from sat_vg.backbone_finetuning.utils.errors import ConfigError, DataError
from sat_vg.backbone_finetuning.utils.file_stamps import stamp_of
from sat_vg.backbone_finetuning.utils.home_paths import expand_home
from sat_vg.backbone_finetuning.utils.json_reading import UnsoundJSONError, read_json
from sat_vg.backbone_finetuning.utils.printable import counted, list_some, one_line
from sat_vg.backbone_finetuning.utils.safe_files import folder_aside, write_text
from sat_vg.backbone_finetuning.utils.seeding import Purpose, derive_seed, numpy_generator
from sat_vg.backbone_finetuning.utils.terminal import progress, say
from sat_vg.scenes.geojson import LabelFile, read_labels
from sat_vg.scenes.labelling import Labelled, Tile, label_windows
from sat_vg.scenes.options import TileOptions

TABLE, _IDENTITY = "tiles.csv", "tiles.json"
_PARTS = {TRAIN: "train", VAL: "val", TEST: "test"}


def tile_scenes(options: TileOptions) -> Path:
    """Write the labelled windows of scenes, and say how many of each class there are.

    Returns:
        The folder, or with ``virtual`` the table.

    Raises:
        ConfigError: an option is missing, contradicts another, or something else lies where is to be written.
        DataError: scenes or labels cannot be used.
        WriteError: there is no room.
    """
    if options.labels is None:
        raise ConfigError("sat-vg tile needs --labels FILE.geojson: the points or polygons that say what is where")
    if (options.split == "blocks") != (options.block_size is not None):
        raise ConfigError("--split blocks and --block_size METRES go together: give both or neither")
    if options.split != "none" and options.val_fraction + options.test_fraction >= 1:
        raise ConfigError("--val_fraction and --test_fraction are all there is: leave something for train")
    scenes = _sound_scenes(options.scenes)
    labels = read_labels(str(expand_home(options.labels)), options.label_column)
    target = _target(options)
    identity = _identity(options, scenes, labels)
    if not options.virtual and _is_done(target, identity):
        say(f"{target} holds these tiles already: nothing was left to do")
        return target
    found = label_windows(scenes, labels, options)
    _tell_labels(labels, found, options)
    tiles = _in_parts(found.tiles, options)
    with explaining_writing(f"{str(target)!r} cannot be written", "; make room there"):
        if options.virtual:
            text = _table(tiles, target.parent)
            if os.path.lexists(target) and not (target.is_file() and target.read_bytes() == text.encode()):
                raise _occupied(target)
            write_text(target, text)
        else:
            _write_folders(target, tiles, identity)
    _tell(target, tiles, found, options)
    return target


def _sound_scenes(paths: Sequence[str]) -> list[Scene]:
    """The scenes, each once, which have to be alike.

    Raises:
        DataError: one cannot be read, or they differ in CRS or bands.
    """
    found: dict[str, Scene] = {}
    for path in paths:
        scene = open_scene(path if "://" in path else str(expand_home(path)))
        found.setdefault(os.path.realpath(scene.path), scene)
    scenes = list(found.values())
    first = scenes[0]
    for other in scenes[1:]:
        if other.crs != first.crs:
            raise DataError(
                f"the scenes have different CRS: {first.path!r} {first.crs or 'none'} and {other.path!r} "
                f"{other.crs or 'none'}; tile those of one CRS at a time, or warp them into one"
            )
        if (other.bands, other.dtype) != (first.bands, first.dtype):
            raise DataError(
                f"the scenes differ: {first.path!r} has {counted(first.bands, 'band')} of {first.dtype}, "
                f"{other.path!r} "
                f"{counted(other.bands, 'band')} of {other.dtype}; tile those of one kind at a time"
            )
    return scenes


def _target(options: TileOptions) -> Path:
    out = expand_home(options.out)
    if options.virtual:
        return out if out.suffix.lower() == ".csv" else out / TABLE
    if out.suffix.lower() == ".csv":
        raise ConfigError(f"--out {options.out!r} is a table: add --virtual true, or name a folder")
    if out.name in ("", ".."):
        raise ConfigError(f"--out {options.out!r}: name a new folder, such as --out tiles")
    return out


def _identity(options: TileOptions, scenes: Sequence[Scene], labels: LabelFile) -> str:
    """A hash of all that decides the tiles."""
    given = {name: value for name, value in asdict(options).items() if name not in ("out", "scenes", "labels")}
    digest = hashlib.sha256(json.dumps([given, [(scene.path, stamp_of(scene.path)) for scene in scenes]]).encode())
    digest.update(Path(labels.path).read_bytes())
    return digest.hexdigest()


def _is_done(target: Path, identity: str) -> bool:
    """Whether these tiles are there already.

    Raises:
        ConfigError: something else is there.
    """
    if not os.path.lexists(target) or (target.is_dir() and not any(target.iterdir())):
        return False
    try:
        if read_json(target / _IDENTITY) == {"identity": identity}:
            return True
    except (OSError, UnsoundJSONError):
        pass
    raise _occupied(target)


def _occupied(target: Path) -> ConfigError:
    return ConfigError(f"--out: {str(target)!r} exists and holds something else; choose another, or remove it")


def _tell_labels(labels: LabelFile, found: Labelled, options: TileOptions) -> None:
    """Say which labels cannot be used; unless they are to be skipped, that is an error."""
    problems = []
    if labels.num_empty:
        say(f"{counted(labels.num_empty, 'feature')} of {labels.path!r} without a geometry passed over")
    if labels.bad:
        number, reason = labels.bad[0]
        problems.append(
            f"{counted(len(labels.bad), 'feature')} of {labels.path!r} cannot be used: the first, number {number}, "
            f"{reason}"
        )
    outside = [label.number for label in labels.labels if label.number not in found.inside]
    if outside:
        problems.append(
            f"{len(outside)} of {counted(len(labels.labels), 'feature')} of {labels.path!r} "
            f"{'lies' if len(outside) == 1 else 'lie'} outside the scenes (the first: number {outside[0]}); "
            "check the CRS"
        )
    inside = {label.name for label in labels.labels if label.number in found.inside}
    for name in sorted(inside - {tile.label for tile in found.tiles}):
        problems.append(f"the class {name!r} has no window: {_why_lost(name, found, options)}")
    if problems and options.on_bad_label == "error":
        raise DataError(f"{problems[0]}; mend the labels, or leave such out with --on_bad_label skip")
    for problem in problems:
        say(f"left out: {problem}")
    if not found.tiles:
        raise DataError(
            f"no window of the scenes has a class by {labels.path!r}; try a smaller --size or --min_cover"
        )


def _why_lost(name: str, found: Labelled, options: TileOptions) -> str:
    if found.in_nodata[name]:
        return "it lies in nodata only"
    if 0 < found.best_cover.get(name, 0) < options.min_cover:
        best = 100 * found.best_cover[name]
        return f"it covers {best:.0f} % of a window at most (--min_cover {options.min_cover:g})"
    return "other classes cover as much of its windows"


def _in_parts(tiles: Sequence[Tile], options: TileOptions) -> Sequence[Tile]:
    """Tiles with their parts; those that lie too near to another part are left out."""
    if options.split == "none":
        return tiles
    names = sorted({tile.label for tile in tiles})
    labels = [names.index(tile.label) for tile in tiles]
    if options.split == "random":
        parts = _random_parts(labels, options)
    else:
        assert options.block_size is not None
        boxes = boxes_in_metres([Footprint(tile.scene.crs, corners_of(tile.scene, tile.window)) for tile in tiles])
        shares = (options.val_fraction, options.test_fraction)
        parts = split_blocks(boxes, labels, options.block_size, shares, options.seed)
    assigned = [
        tile._replace(part=_PARTS[int(part)]) for tile, part in zip(tiles, parts, strict=True) if part != LEFT_OUT
    ]
    kept = {tile.label for tile in assigned if tile.part == _PARTS[TRAIN]}
    lost = [name for name in names if name not in kept]
    if lost:
        problem = (
            f"the split leaves train without a window of {list_some(list(map(repr, lost)), 10)}; use a smaller "
            "--block_size, --val_fraction or --test_fraction, or another --seed"
        )
        if options.on_bad_label == "error" or not kept:
            raise DataError(problem)
        say(f"left out: {problem}")
    return [tile for tile in assigned if tile.label in kept]


def _random_parts(labels: Sequence[int], options: TileOptions) -> np.ndarray:
    parts = np.full(len(labels), TRAIN)
    for label in sorted(set(labels)):
        places = np.flatnonzero(np.asarray(labels) == label)
        order = numpy_generator(derive_seed(options.seed, Purpose.SPLIT, label)).permutation(places)
        val, test = (round(len(places) * share) for share in (options.val_fraction, options.test_fraction))
        parts[order[:val]], parts[order[val : val + test]] = VAL, TEST
    return parts


def _table(tiles: Sequence[Tile], folder: Path, names: Sequence[str] = ()) -> str:
    """The tiles as CSV; of written ones with their paths, ``names``."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    has_parts = any(tile.part for tile in tiles)
    split = ["split"] if has_parts else []
    writer.writerow([*(["path"] if names else []), "scene", "window", "label", *split, "x", "y"])
    for place, tile in enumerate(tiles):
        x, y = corners_of(tile.scene, tile.window).mean(axis=0).tolist()
        scene = os.path.relpath(tile.scene.path, folder).replace(os.sep, "/")
        part = [tile.part] if has_parts else []
        writer.writerow([*names[place : place + 1], scene, str(tile.window), tile.label, *part, repr(x), repr(y)])
    return text.getvalue()


def _write_folders(target: Path, tiles: Sequence[Tile], identity: str) -> None:
    """Write class folders with an image of each tile, the table of all and what they were made of."""
    _require_folder_names({tile.label for tile in tiles}, has_parts=bool(tiles[0].part))
    names = _file_names(tiles)
    name_of = {WindowPath(tile.scene.path, tile.window): name for tile, name in zip(tiles, names, strict=True)}
    with folder_aside(target) as folder:
        for parent in {Path(name).parent for name in names}:
            (folder / parent).mkdir(parents=True, exist_ok=True)

        def write(path: str) -> None:
            assert isinstance(path, WindowPath)
            content = encode_window(path.scene, path.window, is_compressed=True)
            assert content is not None, path  # its share of valid pixels was looked at
            (folder / name_of[path]).write_bytes(content)

        for _ in run_in_order(name_of, write, bar=progress(total=len(names), desc="tiles", unit="tile")):
            pass
        (folder / TABLE).write_text(_table(tiles, target, names), encoding="utf-8")
        (folder / _IDENTITY).write_text(json.dumps({"identity": identity}) + "\n")
        if target.is_dir():  # an empty one
            target.rmdir()
        shutil.copymode((folder / names[0]).parent, folder)  # from one for this user alone to a usual one
        folder.rename(target)


def _require_folder_names(classes: set[str], has_parts: bool) -> None:
    for name in sorted(classes):
        if is_hidden(name) or set(name) & set("/\\\0") or len(name.encode()) > 200 or name in (TABLE, _IDENTITY):
            raise DataError(
                f"the class {name!r} cannot be the name of a folder; rename it in the labels, or use --virtual true"
            )
    if {"train", "val"} <= classes and not has_parts:
        raise DataError(
            "the classes 'train' and 'val' would be read as the parts of a data set; rename them in the labels, or "
            "use --virtual true"
        )


def _file_names(tiles: Sequence[Tile]) -> list[str]:
    """Paths of the images below the folder, which sort as the windows' own paths do."""
    scenes = sorted({tile.scene.path for tile in tiles})
    digits = len(str(len(scenes)))
    names = []
    for scene, (column, row, *_), label, part in tiles:
        number = f"{scenes.index(scene.path) + 1:0{digits}d}_" if len(scenes) > 1 else ""
        ending = "png" if scene.is_picture else "tif"
        name = f"{number}{Path(scene.path).stem}_{row:06d}_{column:06d}.{ending}"
        names.append("/".join([*([part] if part else []), label, name]))
    return names


def _tell(target: Path, tiles: Sequence[Tile], found: Labelled, options: TileOptions) -> None:
    """Say what was written and what was left out."""
    counts = Counter(tile.label for tile in tiles)
    listed = list_some([f"{one_line(name)} {count:,}" for name, count in sorted(counts.items())], 12)
    what = "windows" if options.virtual else "images"
    say(f"{target}: {len(tiles):,} {what} of {options.size} x {options.size} pixels ({listed})")
    near = len(found.tiles) - len(tiles)
    reasons = [
        (found.without_label, f"that no class covers by {options.min_cover:g}" if options.windows == "grid" else ""),
        (found.ambiguous, "with two classes alike"),
        (found.in_nodata.total(), "mostly nodata"),
        (near, "nearer than a block to another part"),
    ]
    left_out = [f"{count:,} {reason}" for count, reason in reasons if count]
    if left_out:
        say(f"windows left out: {', '.join(left_out)}")
    if options.split != "none":
        parts = Counter(tile.part for tile in tiles)
        unit = "pixels" if tiles[0].scene.crs is None else "m"
        how = "window by window" if options.split == "random" else f"in blocks of {options.block_size:g} {unit}"
        say(
            f"split {how} by seed {options.seed}: " + ", ".join(f"{parts[name]:,} {name}" for name in _PARTS.values())
        )
    if options.split == "random":
        say(
            "note: neighbours lie in train and val, which flatters; --split blocks --block_size METRES "
            "keeps them apart"
        )
    outside = options.virtual and any(
        not Path(tile.scene.path).resolve().is_relative_to(target.parent.resolve()) for tile in tiles
    )
    allow = " --allow_outside true" if outside else ""
    say(f"train on them: sat-vg train --dataset_path {quote(str(target))}{allow}")
