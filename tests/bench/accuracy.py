"""Validation accuracy over seeds, with the real training command: mean ± std, speed and peak memory.

    python tests/bench/accuracy.py --seeds 0 1 2 --work DIR --table FILE.md -- \
        --config configs/ucmerced.yaml --dataset_path DIR --weights PATH

What stands behind ``--`` goes to the training command; seed and output folders are added. Every run is a process of
its own; its figures come from its metrics.jsonl, its peak memory from the operating system. With ``--subset DIR:N``
dataset_path is a folder with N images of each class of DIR, always the same ones.
"""

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

from runs import link_images

from sat_vg.backbone_finetuning.utils.cores import usable_cores


def link_subset(root: Path, images: int, target: Path) -> Path:
    """Class folders with links to so many images of each class."""
    shutil.rmtree(target, ignore_errors=True)
    for one in sorted(path for path in root.iterdir() if path.is_dir()):
        found = sorted(path for path in one.iterdir() if path.is_file())
        link_images(random.Random(one.name).sample(found, images), target / one.name)
    return target


def run_once(arguments: list[str], seed: int, work: Path) -> dict[str, float]:
    folder = work / f"seed{seed}"
    own = ["--seed", str(seed), "--log_dir", f"{folder}/logs", "--checkpoint_dir", f"{folder}/checkpoints"]
    command = [sys.executable, "-m", "sat_vg.backbone_finetuning.train", *arguments, *own, "--resume", "never"]
    started = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"seed {seed}: the training command failed")
    lines = [json.loads(line) for line in (folder / "logs/metrics.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if "val_accuracy" in line]
    trained_seconds = sum(line["seconds"] for line in epochs)
    images = sum(line["images_per_second"] * line["seconds"] for line in epochs)
    return {
        "seed": seed,
        "best": max(line["val_accuracy"] for line in epochs),
        "last": epochs[-1]["val_accuracy"],
        "epochs": len(epochs),
        "minutes": seconds / 60,
        "images_per_second": images / trained_seconds,
        "peak_gib": usage.ru_maxrss / 2**20,
    }


def describe(rows: list[dict[str, float]], arguments: list[str], title: str, own: str) -> str:
    import torch
    import torchvision

    def spread(name: str, scale: float = 1.0, digits: int = 2) -> str:
        values = [row[name] * scale for row in rows]
        deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.{digits}f}{deviation}"

    shown = " ".join(Path(a).name if "/" in a and not a.startswith("configs/") else a for a in arguments)
    seeds = " ".join(str(int(row["seed"])) for row in rows)
    lines = [
        f"# {title}",
        "",
        f"Measured {datetime.now(timezone.utc):%Y-%m-%d} on {usable_cores()} cores of {processor()}, "
        f"Python {platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}.",
        "",
        "```",
        f"python tests/bench/accuracy.py --seeds {seeds} {own}--work DIR -- {shown}",
        "```",
        "",
        "The split is made by the seed, stratified, 80/20; the seed also sets order, augmentation and the head's",
        "start. Accuracies are top-1 on the validation images:",
        "*best* is the epoch that `best_model.pt` holds, chosen on the same validation images; *last* is the last",
        "epoch, chosen by nothing.",
        "",
        "| seed | best, % | last, % | epochs | images/s, training | minutes in all | peak memory, GiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['seed']:.0f} | {100 * row['best']:.2f} | {100 * row['last']:.2f} | {row['epochs']:.0f} "
            f"| {row['images_per_second']:.1f} | {row['minutes']:.1f} | {row['peak_gib']:.2f} |"
        )
    if len(rows) > 1:
        lines.append(
            f"| **mean ± std** | **{spread('best', 100)}** | **{spread('last', 100)}** | "
            f"| {spread('images_per_second', digits=1)} | {spread('minutes', digits=1)} | {spread('peak_gib')} |"
        )
    return "\n".join(lines) + "\n"


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, required=True, help="folder for logs and checkpoints")
    parser.add_argument("--subset", help="DIR:N: train on N images of each class of DIR")
    parser.add_argument("--title", default="Validation accuracy")
    parser.add_argument("--table", type=Path, help="Markdown file to write")
    own, arguments = sys.argv[1:], []
    if "--" in own:
        position = own.index("--")
        own, arguments = own[:position], own[position + 1 :]
    options = parser.parse_args(own)
    given, shown = [], ""
    if options.subset:
        root, _, count = options.subset.rpartition(":")
        given = ["--dataset_path", str(link_subset(Path(root), int(count), options.work / "subset"))]
        shown = f"--subset {Path(root).name}:{count} "
    rows = [run_once([*arguments, *given], seed, options.work) for seed in options.seeds]
    text = describe(rows, arguments, options.title, shown)
    print(text)
    if options.table:
        options.table.write_text(text)


if __name__ == "__main__":
    main()
