"""``sat-vg predict MODEL SCENE``: a map of classes by windows that slide over a scene."""

import csv
import hashlib
import os
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sat_vg.backbone_finetuning.commands.predict.cli import PredictOptions
from sat_vg.backbone_finetuning.commands.trained_models import advising_smaller_batches, load_ensemble, model_file
from sat_vg.backbone_finetuning.data.checks.image_traits import describe_decisions
from sat_vg.backbone_finetuning.data.reading.decoder import Traits
from sat_vg.backbone_finetuning.data.reading.gdal import require_rasterio
from sat_vg.backbone_finetuning.data.reading.geo import decoder_of
from sat_vg.backbone_finetuning.data.reading.threads import read_in_order
from sat_vg.backbone_finetuning.data.sources.class_names import SEPARATOR
from sat_vg.backbone_finetuning.data.windows.opened import open_placed_scene
from sat_vg.backbone_finetuning.data.windows.paths import WindowPath, grid_of, starts, valid_shares
from sat_vg.backbone_finetuning.data.windows.places import corners_of
from sat_vg.backbone_finetuning.models.ensemble import Ensemble
from sat_vg.backbone_finetuning.models.prediction import LIKELIER_THAN_NOT
from sat_vg.backbone_finetuning.utils.errors import ConfigError, DataError, StoppedError
from sat_vg.backbone_finetuning.utils.file_stamps import sha256_of, stamp_of
from sat_vg.backbone_finetuning.utils.home_paths import expand_home
from sat_vg.backbone_finetuning.utils.precision import Precision, choose_device, choose_precision
from sat_vg.backbone_finetuning.utils.printable import counted, one_line
from sat_vg.backbone_finetuning.utils.terminal import progress, say
from sat_vg.scenes.geojson import write_regions
from sat_vg.scenes.kept_windows import KeptWindows, windows_kept_beside
from sat_vg.scenes.preview import write_preview
from sat_vg.scenes.rasters import WindowShares, files_aside, likeliest, write_class_raster, write_probabilities

_FORMATS = (".tif", ".tiff", ".geojson", ".csv")
_PREVIEW, _PROBABILITIES = "preview.png", "probabilities.tif"
_MOST_SHARES = 2**26  # probabilities that are held at a time: 256 MiB


def map_scene(options: PredictOptions) -> Path:
    """Write a map of a scene's classes, and say what it holds.

    Returns:
        The path of the map.

    Raises:
        ConfigError: an option contradicts another, or the map would be written over something.
        DataError: the scene cannot be read.
        CheckpointError: the model cannot be used.
        WriteError: there is no room.
    """
    target = _target(options)
    ensemble = load_ensemble(options.checkpoint, options.ensemble, options.views, say)
    model = ensemble.models[0]
    _require_one_class(ensemble, target)
    given = options.images[0]
    scene = open_placed_scene(given if "://" in given else str(expand_home(given)))
    if scene.crs is None:
        say(f"note: {scene.path} has no coordinates, so {target.name} is in pixels (column, row)")
    size = options.size or model.preprocessing.image_size
    stride = options.stride or max(1, size // 2)
    if stride > size:
        raise ConfigError(f"--stride {stride}: leaves gaps between windows of {size} pixels; use {size} or less")
    windows = [WindowPath(scene.path, window) for window in grid_of(scene, size, stride)]
    if len(windows) * model.num_classes > _MOST_SHARES:
        raise ConfigError(
            f"--stride {stride}: gives {len(windows):,} windows, more than memory holds; use a larger one"
        )
    shares = valid_shares(scene, [path.window for path in windows])
    wanted = [path for path, share in zip(windows, shares, strict=True) if share > 0]
    if not wanted:
        raise DataError(f"the scene {scene.path!r} has no value: all its pixels are nodata or masked")
    precision = choose_precision(choose_device(options.device), mixed_precision=False)
    for each in ensemble.models:
        precision.place_model(each)
    left_out = f", {len(windows) - len(wanted):,} without a value left out" if len(wanted) < len(windows) else ""
    chosen = "" if options.size else " (the size of the model's images; --size sets it)"
    say(f"scene: {scene.width} x {scene.height} pixels, {scene.bands} x {scene.dtype}, in {scene.crs or 'pixels'}")
    say(f"windows: {len(wanted):,} of {size} x {size} pixels{chosen}, stride {stride}{left_out}, on {precision}")
    values = np.full((len(windows), model.num_classes), np.nan, np.float32)
    files = [model_file(path) for path in (options.checkpoint, *options.ensemble)]
    numbers = (ensemble.num_views, options.batch_size, size, stride, stamp_of(scene.path), precision.arithmetic)
    key = hashlib.sha256(repr(([sha256_of(path).hexdigest() for path in files], *numbers)).encode()).digest()
    with windows_kept_beside(target, key, (len(wanted), model.num_classes), options.batch_size) as kept:
        predict_windows(ensemble, precision, wanted, options.batch_size, kept)
        values[shares > 0] = kept.values
        rows, columns = (len(starts(length, size, stride)) for length in (scene.height, scene.width))
        found = WindowShares(scene, size, stride, values.reshape(rows, columns, -1))
        _write(target, found, windows, ensemble, options)
    return target


def _target(options: PredictOptions) -> Path:
    """The map to write.

    Raises:
        ConfigError: it is not known which, or something is there.
    """
    if options.out is None:
        raise ConfigError(
            "--size, --stride, --probabilities and --preview are for scenes: name the map to write with --out map.tif"
        )
    if len(options.images) != 1:
        raise ConfigError(f"--out {options.out!r}: a map is of one scene, and {len(options.images)} are named")
    unused = [name for name in ("json", "overlays", "top") if getattr(options, name)]
    if unused:
        raise ConfigError(f"--{unused[0]} has no effect on a scene; leave it out")
    target = expand_home(options.out)
    if target.suffix.lower() not in _FORMATS:
        raise ConfigError(f"--out {options.out!r}: its ending says the format; use {', '.join(_FORMATS)}")
    if os.path.lexists(target):
        raise ConfigError(f"--out {options.out!r} exists; choose another, or remove it")
    scene = expand_home(options.images[0])
    for beside in (_beside(target, _PREVIEW), _beside(target, _PROBABILITIES)):
        if beside.exists() and scene.exists() and beside.samefile(scene):
            raise ConfigError(
                f"--out {options.out!r}: {beside.name}, which goes beside it, is the scene; choose another"
            )
    if target.suffix.lower() != ".csv":
        require_rasterio()
    if options.probabilities and target.suffix.lower() == ".geojson":
        raise ConfigError("--probabilities true: regions have none; use --out map.tif or map.csv")
    return target


def _beside(target: Path, ending: str) -> Path:
    return target.with_name(f"{target.stem}.{ending}")


def _require_one_class(ensemble: Ensemble, target: Path) -> None:
    first = ensemble.models[0]
    if first.task == "multi_label" and target.suffix.lower() != ".csv":
        raise ConfigError(
            "the model gives an image several classes, and a place of a map has one; use --out map.csv, a "
            "line a window"
        )
    if any(model.preprocessing != first.preprocessing for model in ensemble.models):
        raise ConfigError(
            "--ensemble: over a scene only models of the same image size and normalisation are averaged"
        )


@torch.inference_mode()
def predict_windows(
    ensemble: Ensemble, precision: Precision, windows: Sequence[str], batch_size: int, kept: KeptWindows
) -> None:
    """Add the probabilities of the windows that are not in ``kept`` yet.

    ``batch_size`` windows go through the network at once; as many more are read meanwhile.

    Raises:
        DataError: a window cannot be read.
        StoppedError: the model's probabilities are no numbers.
    """
    preprocessing = ensemble.models[0].preprocessing
    traits: dict[str, Traits] = {}
    left = windows[kept.count :]
    if kept.count:
        say(f"going on after {kept.count:,} windows, which a call that was stopped had predicted")
    read = read_in_order(left, preprocessing.geometry(), 2 * batch_size, decoder_of(preprocessing), traits)
    began = time.monotonic()
    with (
        progress(total=len(windows), initial=kept.count, desc="windows", unit="window") as bar,
        advising_smaller_batches(batch_size),
    ):
        while batch := list(islice(read, batch_size)):
            for place, content in enumerate(batch, kept.count):
                if not isinstance(content, Tensor):
                    raise DataError(f"the window {windows[place]!r} cannot be read: {content}")
            images = torch.stack([content for content in batch if isinstance(content, Tensor)])
            placed = precision.place_images(preprocessing.normalise(images.to(precision.device)))
            shares = [model.predict_probabilities(placed, ensemble.num_views).cpu() for model in ensemble.models]
            mean = shares[0] if len(shares) == 1 else torch.stack(shares).mean(0)
            if not mean.isfinite().all():
                raise StoppedError(
                    "the model's probabilities are no numbers: its weights are broken; use another one"
                )
            kept.add(mean.float().numpy())
            bar.update(len(batch))
    seconds = time.monotonic() - began
    for text in describe_decisions(traits):
        say(f"warning: {text}")
    say(f"predicted in {seconds:.1f} s, {len(left) / max(seconds, 1e-9):.0f} windows/s")


def _write(
    target: Path, found: WindowShares, windows: Sequence[WindowPath], ensemble: Ensemble, options: PredictOptions
) -> None:
    """Write the map, with what is wished beside it."""
    names, kind = ensemble.models[0].class_names, target.suffix.lower()
    preview, chances = _beside(target, _PREVIEW), _beside(target, _PROBABILITIES)
    tags = {"SAT_VG_SIZE": str(found.size), "SAT_VG_STRIDE": str(found.stride)}
    with files_aside(target, [preview, chances]) as aside:
        if kind == ".csv":
            _write_table(aside[target], found, windows, ensemble, options)
            counts = _counts(found, len(names))
        else:
            raster = aside[target] if kind != ".geojson" else aside[target].with_suffix(".tif")
            counts = write_class_raster(raster, found, names, tags)
            if kind == ".geojson":
                rasterio = require_rasterio()
                with rasterio.open(raster) as source:
                    band, place = rasterio.band(source, 1), source.transform
                    regions = write_regions(aside[target], band, place, found.scene.crs, names)
                say(f"{counted(regions, 'region')} of equal neighbours")
            elif options.probabilities:
                write_probabilities(aside[chances], found, names)
        if options.preview:
            write_preview(aside[preview], found, names, counts)
        written = [path for path, there in aside.items() if there.exists()]
    total = max(1, sum(counts[1:]))
    order = sorted(range(len(names)), key=lambda number: -counts[number + 1])
    shown = ", ".join(f"{one_line(names[number])} {100 * counts[number + 1] / total:.1f} %" for number in order[:10])
    say(f"written: {', '.join(str(path) for path in reversed(written))}")
    say(f"of the ground: {shown}" + (f" and {len(names) - 10} more" if len(names) > 10 else ""))


def _counts(found: WindowShares, num_classes: int) -> list[int]:
    """Windows without a class, and of each class."""
    classes = likeliest(found.values.reshape(-1, num_classes))
    return [int(count) for count in np.bincount(classes, minlength=num_classes + 1)]


def _write_table(
    path: Path, found: WindowShares, windows: Sequence[WindowPath], ensemble: Ensemble, options: PredictOptions
) -> None:
    """A line for each window with a value: a table that trainings and other commands read as well."""
    model, scene = ensemble.models[0], found.scene
    is_multi_label = model.task == "multi_label"
    relative = os.path.relpath(scene.path, expand_home(str(options.out)).parent).replace(os.sep, "/")
    shares = found.values.reshape(len(windows), -1)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        label = "labels" if is_multi_label else "label"
        more = model.class_names if options.probabilities else ()
        writer.writerow(["scene", "window", label, "probability", "x", "y", *more])
        for window, row in zip(windows, shares.tolist(), strict=True):
            if np.isnan(row[0]):
                continue
            best = max(range(len(row)), key=row.__getitem__)
            given = [name for name, share in zip(model.class_names, row, strict=True) if share >= LIKELIER_THAN_NOT]
            x, y = corners_of(scene, window.window).mean(axis=0).tolist()
            name = SEPARATOR.join(given) if is_multi_label else model.class_names[best]
            chances = [f"{share:.6f}" for share in row] if more else []
            writer.writerow([relative, str(window.window), name, f"{row[best]:.6f}", repr(x), repr(y), *chances])
