"""Whole commands against whole commands: W1 to W5, in turns, from process start to process end, with empty caches.

    python tests/bench/whole_commands.py --pairs 4 --out whole_commands.json
    python tests/bench/whole_commands.py --only W1 W4 --peer "timm=/envs/timm/bin/python /src/train.py ..."

The opponent is ``tuned_loop.py``, with glibc told to keep freed memory. ``--peer NAME=COMMAND`` adds another one; its
command may hold ``{train}``, ``{val}``, ``{out}`` and ``{epochs}``. Random weights; images are drawn. Prints a table
of medians, spreads and ratios, of CPU seconds (user and system, of all threads), and of peak memory.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from sat_vg.backbone_finetuning.utils.cores import usable_cores

HERE = Path(__file__).parent
# Images for training and validation, their size, epochs, what is trained, and settings of ours.
WORK = {
    "W1": (320, 80, 224, 1, "full", "resnet50", ()),
    "W2": (320, 80, 224, 5, "linear_probe", "resnet50", ("--probe_solver", "sgd")),
    "W2 exact": (320, 80, 224, 5, "linear_probe", "resnet50", ("--probe_solver", "exact")),
    "W3": (320, 80, 224, 2, "last_layers", "resnet50", ()),
    "W4": (1920, 400, 64, 2, "full", "resnet18", ()),
    "W5": (320, 80, 224, 2, "full", "mobilenet_v2", ()),
}
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "4294967296"}


def draw(folder: Path, train: int, val: int, size: int) -> None:
    """Class folders of JPEG files: ten classes of noise around a colour."""
    generator = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for index in range(count):
            label = index % 10
            path = folder / split / f"class{label}" / f"{index:05d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse = generator.integers(0, 256, (size // 16 + 1, size // 16 + 1, 3), dtype=np.uint8)
            pixels = np.asarray(Image.fromarray(coarse).resize((size, size)), dtype=np.float64)
            colour = np.array([25 * label, 255 - 25 * label, 128])
            Image.fromarray(((pixels + colour) / 2).astype(np.uint8)).save(path, quality=90)


def timed(command: list[str], folder: Path, **variables: str) -> tuple[float, float, float]:
    """Seconds of a whole process, its peak memory in GiB, and its CPU seconds."""
    environment = {**os.environ, "SAT_VG_CACHE": str(folder / "cache"), **variables}
    clock = time.perf_counter()
    child = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    errors = child.stderr.read() if child.stderr else b""
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - clock
    if status:
        raise SystemExit(f"{shlex.join(command)} failed:\n{errors.decode(errors='replace')[-2000:]}")
    return seconds, usage.ru_maxrss / 2**20, usage.ru_utime + usage.ru_stime


def ours(data: Path, name: str) -> list[str]:
    _, _, size, epochs, strategy, backbone, more = WORK[name]
    return [
        sys.executable, "-m", "sat_vg.backbone_finetuning.train", "--dataset_path", str(data), "--backbone", backbone,
        "--pretrained", "false", "--strategy", strategy, "--num_epochs", str(epochs), "--image_size", str(size),
        "--learning_rate", "1e-3", "--warmup_epochs", "0", "--on_duplicates", "ignore", *more,
    ]  # fmt: skip


def tuned(data: Path, name: str) -> list[str]:
    _, _, size, epochs, strategy, backbone, _ = WORK[name]
    return [
        sys.executable, str(HERE / "tuned_loop.py"), str(data / "train"), str(data / "val"), "--backbone", backbone,
        "--train", strategy, "--epochs", str(epochs), "--size", str(size),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--only", nargs="+", choices=tuple(WORK), default=tuple(WORK))
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND")
    parser.add_argument("--out")
    options = parser.parse_args()
    peers = dict(peer.split("=", 1) for peer in options.peer)
    results: dict[str, dict[str, list[tuple[float, float, float]]]] = {}
    with tempfile.TemporaryDirectory() as around:
        for name in options.only:
            train, val, size, epochs, *_ = WORK[name]
            data = Path(around, f"images_{train}_{size}")
            if not data.exists():
                draw(data, train, val, size)
            found: dict[str, list[tuple[float, float, float]]] = {
                "ours": [],
                "tuned loop": [],
                **{peer: [] for peer in peers},
            }
            results[name] = found
            for pair in range(options.pairs):
                for who in found if pair % 2 == 0 else reversed(found):
                    with tempfile.TemporaryDirectory(dir=around) as folder:
                        if who == "ours":
                            measured = timed(ours(data, name), Path(folder))
                        elif who == "tuned loop":
                            measured = timed(tuned(data, name), Path(folder), **KEEP_MEMORY)
                        else:
                            places = {"train": data / "train", "val": data / "val", "out": folder, "epochs": epochs}
                            command = shlex.split(peers[who].format(**places))
                            measured = timed(command, Path(folder), **KEEP_MEMORY)
                        found[who].append(measured)
                        print(
                            f"{name} {who}: {measured[0]:.1f} s, {measured[1]:.2f} GiB, CPU {measured[2]:.1f} s",
                            file=sys.stderr,
                        )
                        if options.out:
                            Path(options.out).write_text(json.dumps(results, indent=1))
    print(f"{platform.processor() or platform.machine()}, {usable_cores()} cores, {options.pairs} pairs in turns\n")
    print("| | ours, s | best other, s | ours / best (pairs) | CPU s: ours / other | peak, GiB: ours, other |")
    print("|---|---|---|---|---|---|")
    for name, found in results.items():
        seconds = {who: [one[0] for one in measured] for who, measured in found.items()}
        others = [who for who in found if who != "ours"]
        best = min(others, key=lambda who: statistics.median(seconds[who]))
        ratios = [a / b for a, b in zip(seconds["ours"], seconds[best], strict=True)]
        _, peaks, cpu = (
            [statistics.median(one[i] for one in found[who]) for who in ("ours", best)] for i in range(3)
        )
        print(
            f"| {name} | {spread(seconds['ours'])} | {best} {spread(seconds[best])} | "
            f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f} – {max(ratios):.2f}) | "
            f"{cpu[0]:.1f} / {cpu[1]:.1f} = {cpu[0] / cpu[1]:.2f} | {peaks[0]:.2f}, {peaks[1]:.2f} |"
        )


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} – {max(values):.1f})"


if __name__ == "__main__":
    main()
