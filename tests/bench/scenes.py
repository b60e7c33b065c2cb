"""Scenes measured: what random splits of neighbouring windows hide, and a map of a large scene.

    python tests/bench/scenes.py leakage --work DIR
    python tests/bench/scenes.py map --work DIR --size 12000

`leakage` draws a scene, tiles its left part with a random and with a blocked split, trains on both, and measures
each model on val and on the far right part. `map` draws a large scene, trains on a part of its own windows, and
prints: the memory of the map over that of the model, its rate against `predict` on the same windows as files
(interleaved, in one process), and its agreement with the truth. All lines are JSON.
"""

import argparse
import contextlib
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import rasterio
import torch
from rasterio.windows import Window
from scipy.ndimage import minimum_filter

from sat_vg.backbone_finetuning import FinetuneConfig, FineTuneModel, finetune
from sat_vg.backbone_finetuning.commands.predict.cli import PredictOptions
from sat_vg.backbone_finetuning.commands.predict.run import predict_images
from sat_vg.backbone_finetuning.commands.trained_models import load_ensemble
from sat_vg.backbone_finetuning.utils.precision import choose_device, choose_precision
from sat_vg.scenes import draw_scene, predict_scene, tile

SIDE = 64


def train(data: Path, work: Path, options: argparse.Namespace, seed: int = 0) -> tuple[Path, dict[str, Any]]:
    """Train on tiles: best_model.pt and its metrics."""
    result = finetune(
        FinetuneConfig(
            dataset_path=str(data), backbone=options.backbone, weights=options.weights, image_size=SIDE,
            strategy=options.strategy, num_epochs=options.epochs, early_stopping_patience=0, seed=seed,
            on_duplicates="warn",
            pretrained=options.weights is not None, log_dir=f"{work}/logs", checkpoint_dir=f"{work}/ckpt",
        )
    )  # fmt: skip
    return Path(result.best_model), result.metrics


def part_of(scene: Path, out: Path, first: float, last: float) -> Path:
    """A vertical part of a scene, from one share of its width to another."""
    with rasterio.open(scene) as source:
        left, right = round(first * source.width), round(last * source.width)
        window = Window(left, 0, right - left, source.height)
        profile = {"driver": "GTiff", "tiled": True, "compress": "deflate", "photometric": "RGB", "count": 3,
                   "dtype": "uint8", "crs": source.crs, "width": right - left, "height": source.height,
                   "transform": source.window_transform(window)}  # fmt: skip
        with rasterio.open(out, "w", **profile) as file:
            file.write(source.read(window=window))
    return out


def leakage(options: argparse.Namespace) -> None:
    for seed in range(options.seeds):
        work = options.work / f"seed{seed}"
        work.mkdir(parents=True)
        look = {"texture": options.texture, "drift": options.drift}
        scene = draw_scene(work / "scene.tif", size=options.size, seed=seed, **look)
        near, far = (
            part_of(scene, work / name, *share) for name, share in (("near.tif", (0, 0.6)), ("far.tif", (0.75, 1)))
        )
        common = {"labels": scene.with_suffix(".geojson"), "size": SIDE, "min_cover": 0.8, "on_bad_label": "skip"}
        outside = tile(far, out=work / "far", **common)
        for split, more in (("random", {}), ("blocks", {"block_size": options.block_size})):
            data = tile(near, out=work / split, split=split, seed=seed, **common, **more)
            model, metrics = train(data, work / f"run_{split}", options, seed)
            answers = FineTuneModel.load_checkpoint(model).eval().predict(outside, batch_size=64)
            right = [Path(str(each.path)).parent.name == each.label for each in answers]
            counts = {part: len(list((data / part).rglob("*.tif"))) for part in ("train", "val")}
            print(json.dumps({"seed": seed, "split": split, **counts, "val_accuracy": metrics["val_accuracy"],
                              "far_accuracy": mean(right), "far": len(right)}), flush=True)  # fmt: skip


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def quietly(options: PredictOptions) -> float:
    """Seconds that predict takes over image files, its answers thrown away."""
    began = time.perf_counter()
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        predict_images(options)
    return time.perf_counter() - began


def prepare(options: argparse.Namespace) -> None:
    """Draw the scene, train on some of its windows, and write a part of it as files."""
    work = options.work
    work.mkdir(parents=True, exist_ok=True)
    scene = work / "scene.tif"
    began = time.perf_counter()
    draw_scene(scene, size=options.size)
    print(json.dumps({"drawn_s": time.perf_counter() - began, "mb": scene.stat().st_size / 1e6}), flush=True)
    labels = scene.with_suffix(".geojson")
    of_tiles = {"stride": options.train_stride, "min_cover": 0.8, "split": "random", "on_bad_label": "skip"}
    data = tile(scene, labels, size=SIDE, out=work / "tiles", **of_tiles)
    _, metrics = train(data, work / "run", options)
    print(json.dumps({"val_accuracy": metrics["val_accuracy"]}), flush=True)
    part = part_of(scene, work / "part.tif", 0.0, options.part)
    tile(part, labels, size=SIDE, min_cover=1e-3, on_bad_label="skip", out=work / "chips")


def map_large(options: argparse.Namespace) -> None:
    work, scene, model = options.work, options.work / "scene.tif", options.work / "run/ckpt/best_model.pt"
    if not model.exists():  # in a process of its own, as a training takes memory
        subprocess.run([sys.executable, __file__, "prepare", *sys.argv[2:]], check=True)
    ensemble = load_ensemble(str(model), (), 1, print)
    choose_precision(choose_device(options.device), mixed_precision=False).place_model(ensemble.models[0])
    ensemble.predict_probabilities(torch.zeros(64, 3, SIDE, SIDE, dtype=torch.uint8))
    before = peak_mib()
    found = work / "map.tif"
    for old in work.glob("map.*"):
        old.unlink()
    began = time.perf_counter()
    predict_scene(model, scene, found, size=SIDE, stride=options.stride, batch_size=64, device=options.device)
    seconds = time.perf_counter() - began
    print(json.dumps({"map_s": seconds, "mib_with_model": before, "mib_over_it": peak_mib() - before}), flush=True)
    print(json.dumps(agreement(found, scene.with_name("scene.truth.tif"))), flush=True)
    rates(options, model)


def rates(options: argparse.Namespace, model: Path) -> None:
    """Windows of a scene against the same windows as files, in turns."""
    part, chips_folder = options.work / "part.tif", options.work / "chips"
    with rasterio.open(part) as source:
        windows = -(-source.width // SIDE) * -(-source.height // SIDE)
    chips = len(list(chips_folder.rglob("*.tif")))
    shared: dict[str, Any] = {"batch_size": 64, "device": options.device}
    ratios = []
    for number in range(options.rounds):
        files = quietly(PredictOptions(checkpoint=str(model), images=(str(chips_folder),), **shared))
        out = options.work / f"part{number}.csv"
        out.unlink(missing_ok=True)
        began = time.perf_counter()
        predict_scene(model, part, out, size=SIDE, stride=SIDE, preview=False, **shared)
        seconds = time.perf_counter() - began
        ratios.append((windows / seconds) / (chips / files))
        print(json.dumps({"files_per_s": chips / files, "windows_per_s": windows / seconds, "ratio": ratios[-1]}))
    spread = stdev(ratios) if len(ratios) > 1 else 0.0
    print(json.dumps({"rate_ratio": mean(ratios), "std": spread, "windows": windows, "chips": chips}), flush=True)


def agreement(found: Path, truth: Path) -> dict[str, float]:
    """Share of pixels whose class is the truth's: of all, and of those half a window from any other class."""
    same = counted = same_inside = inside = 0
    reach = SIDE // 2
    with rasterio.open(found) as first, rasterio.open(truth) as second:
        assert first.transform == second.transform
        assert [first.tags()[f"CLASS_{number}"] for number in range(1, 6)] == [
            second.tags()[f"CLASS_{number}"] for number in range(1, 6)
        ]
        for row in range(0, first.height, 2048):
            top = max(0, row - reach)
            rows = min(first.height, row + 2048 + reach) - top
            window = Window(0, top, first.width, rows)
            own = slice(row - top, row - top + min(2048, first.height - row))
            classes, wanted = first.read(1, window=window), second.read(1, window=window)
            pure = np.ones(wanted.shape, bool)
            for number in range(1, 6):
                here = (wanted == number).astype(np.uint8)
                pure &= (minimum_filter(here, 2 * reach + 1) == here) | (here == 0)
            equal = classes == wanted
            same, counted = same + int(equal[own].sum()), counted + equal[own].size
            same_inside, inside = same_inside + int(equal[own][pure[own]].sum()), inside + int(pure[own].sum())
    return {"agreement": same / counted, "away_from_borders": same_inside / inside, "share_away": inside / counted}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["leakage", "map", "prepare"])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--size", type=int, default=4096, help="pixels of the scene")
    parser.add_argument("--train_stride", type=int, default=256, help="pixels between windows that are trained on")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--block_size", type=float, default=6000, help="metres")
    parser.add_argument("--texture", type=float, default=0.02, help="of the scene of leakage: faint")
    parser.add_argument("--drift", type=float, default=90, help="of its colours, in grey levels")
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--strategy", default="linear_probe")
    parser.add_argument("--weights")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument(
        "--part", type=float, default=0.05, help="share of the scene whose windows are written as files"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--stride", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    os.environ["SAT_VG_CACHE"] = str(options.work / "cache")
    versions = {"torch": torch.__version__, "rasterio": rasterio.__version__, "threads": torch.get_num_threads()}
    print(json.dumps({"python": platform.python_version(), **versions}), flush=True)
    {"leakage": leakage, "map": map_large, "prepare": prepare}[options.what](options)


if __name__ == "__main__":
    main()
