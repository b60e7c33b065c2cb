"""How fast it is: every row a ratio, measured in turns in one run, with median and spread.

    python tests/bench/speed.py --ucmerced DIR --eurosat DIR --weights mobilenet_v2-imagenet.pth --table FILE.md

Rows are chosen by ``--rows``; those whose data or weights are not named are left out, and said so. Every measurement
is a process of its own, so that allocator, threads and peak memory are its own. JSON goes beside the table.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

from sat_vg.backbone_finetuning.data.sources.scenes import scenes_folder
from sat_vg.backbone_finetuning.utils.cores import usable_cores

HERE = Path(__file__).parent
TRAIN = [sys.executable, "-m", "sat_vg.backbone_finetuning.train"]


class Row:
    """A ratio: what is measured, against what, how often, and what it should at least be."""

    def __init__(
        self, name: str, ours: list[float], theirs: list[float], unit: str, bar: float | None, **more: object
    ):
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        self.name, self.unit, self.bar, self.more = name, unit, bar, more
        self.ours, self.theirs, self.ratios = ours, theirs, ratios

    def cells(self) -> list[str]:
        bar = "" if self.bar is None else f"≥ {self.bar:g}"
        more = "; ".join(f"{name} {value}" for name, value in self.more.items())
        low, high = min(self.ratios), max(self.ratios)
        middle = [f"{statistics.median(values):.3g}" for values in (self.ours, self.theirs)]
        ratio = f"**{statistics.median(self.ratios):.2f}** ({low:.2f} to {high:.2f})"
        return [self.name, *middle, self.unit, ratio, bar, str(len(self.ratios)), more]

    def as_dict(self) -> dict[str, object]:
        return {"name": self.name, "unit": self.unit, "ours": self.ours, "theirs": self.theirs,
                "ratios": self.ratios, "bar": self.bar, **self.more}  # fmt: skip


def child(script: str, *arguments: object) -> dict:
    """Run a script of this folder; the JSON of its last line."""
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def train(folder: Path, *arguments: object) -> dict:
    """Run the training command from its start to its end."""
    own = ["--log_dir", folder / "logs", "--checkpoint_dir", folder / "ckpt", "--resume", "never"]
    began = time.perf_counter()
    process = subprocess.Popen([*TRAIN, *map(str, [*arguments, *own])], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit("the training command failed")
    lines = [json.loads(line) for line in (folder / "logs/metrics.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if "val_accuracy" in line]
    return {
        "seconds": time.perf_counter() - began,
        "accuracy": max(line["val_accuracy"] for line in epochs),
        "images_per_second": statistics.median(line["images_per_second"] for line in epochs),
        "peak_gib": usage.ru_maxrss / 2**20,
    }


def against_the_bare_step(root: str, backbone: str, size: int, bar: float | None, repeats: int, steps: int) -> Row:
    found = child("steps.py", root, "--backbone", backbone, "--size", size, "--repeats", repeats, "--steps", steps)
    name = f"an epoch of ours / bare step, {backbone} at {size} px"
    return Row(name, found["ours"], found["bare"], "images/s", bar, formats=found["precision"])


def against_the_plain_loop(root: str, repeats: int) -> Row:
    plain, own = [], []
    for _ in range(repeats):
        plain.append(child("plain_loop.py", root, "--backbone", "resnet50", "--max_steps", 8)["images_per_second"])
        steps = child("steps.py", root, "--backbone", "resnet50", "--repeats", 1, "--steps", 6)
        own += steps["ours"]
    return Row("full fine-tuning of resnet50 at 224 px / plain loop", own, plain, "images/s", 2.5)


def whole_command(options: argparse.Namespace, what: str, epochs: int, flags: list[str], bar: float) -> Row:
    """Two commands from start to end, on the same split: seconds, and the accuracy that each reaches."""
    root, size = options.ucmerced, options.size
    rows: dict[str, list[float]] = {"plain": [], "ours": [], "plain_accuracy": [], "accuracy": []}
    common = ["--weights", options.weights, "--backbone", "mobilenet_v2"]
    for seed in range(options.runs):
        plain = child("plain_loop.py", root, *common, "--train", what, "--epochs", epochs, "--seed", seed,
                      "--size", size)  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            # Nothing of an earlier run: images are decoded and features computed within the time that is taken.
            os.environ["SAT_VG_CACHE"] = folder
            own = train(Path(folder), "--dataset_path", root, *common, "--strategy", what, "--num_epochs", epochs,
                        "--learning_rate", 1e-3, "--seed", seed, "--early_stopping_patience", 0,
                        "--image_size", size, *flags)  # fmt: skip
            del os.environ["SAT_VG_CACHE"]
        print(f"{what}, seed {seed}: {json.dumps({'plain': plain, 'ours': own})}", file=sys.stderr, flush=True)
        rows["plain"].append(1 / plain["seconds"])
        rows["ours"].append(1 / own["seconds"])
        rows["plain_accuracy"].append(plain["accuracy"])
        rows["accuracy"].append(own["accuracy"])
    accuracies = [f"{100 * statistics.mean(rows[name]):.2f} %" for name in ("accuracy", "plain_accuracy")]
    name = f"{what}, {epochs} epochs, mobilenet_v2 at {size} px {' '.join(flags)} / plain loop".replace("  ", " ")
    return Row(
        name, rows["ours"], rows["plain"], "runs/s", bar, accuracy=f"{accuracies[0]}, plain loop {accuracies[1]}"
    )


def with_and_without_the_cache(options: argparse.Namespace, what: str, flags: list[str]) -> Row:
    """The same run with ``--cache auto`` and ``off``: decoding and frozen stages once, or in every epoch."""
    settings = ["--dataset_path", options.ucmerced, "--weights", options.weights, "--backbone", "mobilenet_v2",
                "--strategy", what, "--num_epochs", 10, "--image_size", options.size,
                "--early_stopping_patience", 0, *flags]  # fmt: skip
    rows: dict[str, list[float]] = {"auto": [], "off": []}
    accuracies = set()
    for seed in range(options.runs):
        for cache, seconds in rows.items():
            with tempfile.TemporaryDirectory() as folder:
                os.environ["SAT_VG_CACHE"] = folder
                found = train(Path(folder), *settings, "--seed", seed, "--cache", cache)
                del os.environ["SAT_VG_CACHE"]
            seconds.append(1 / found["seconds"])
            accuracies.add((seed, found["accuracy"]))
    same = "the same with and without" if len(accuracies) == options.runs else f"{sorted(accuracies)}"
    name = f"{what} {' '.join(flags)}, 10 epochs, mobilenet_v2 at {options.size} px: --cache auto / off"
    return Row(name, rows["auto"], rows["off"], "runs/s", None, accuracy=same)


def pipeline(root: str, repeats: int) -> list[Row]:
    found = child("pipeline.py", root, "--repeats", repeats)
    plain = "PIL and torchvision v1 to float"
    return [
        Row("images on one core, from JPEG: ours / " + plain, found["ours"], found["plain"], "images/s", None),
        Row("images on one core, decoded before: ours / " + plain, found["cached"], found["plain"], "images/s", None),
    ]


def import_time(repeats: int) -> Row:
    def seconds(code: str) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - began

    base, own = [], []
    for _ in range(repeats):
        base.append(seconds("import torch, torchvision"))
        own.append(seconds("import torch, torchvision, sat_vg.backbone_finetuning as s; s.FineTuneModel"))
    more = statistics.median(a - b for a, b in zip(own, base, strict=True))
    helps = statistics.median(_help_seconds() for _ in range(repeats))
    return Row("import of the package with FineTuneModel / of torch and torchvision", own, base, "seconds", None,
               more=f"{more:.2f} s (bar: 0.3)", help=f"{helps:.2f} s (bar: 3)")  # fmt: skip


def _help_seconds() -> float:
    began = time.perf_counter()
    subprocess.run([*TRAIN, "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def memory(root: str, repeats: int) -> Row:
    """Peak memory of one epoch and of three over all images."""
    small = ["--backbone", "squeezenet1_1", "--pretrained", "false", "--image_size", 64, "--batch_size", 128,
             "--warmup_epochs", 0, "--optimizer", "sgd", "--learning_rate", 0.01]  # fmt: skip
    short, long = [], []
    for _ in range(repeats):
        for found, epochs in ((short, 1), (long, 3)):
            with tempfile.TemporaryDirectory() as folder:
                run = train(Path(folder), "--dataset_path", root, *small, "--num_epochs", epochs)
            found.append(run["peak_gib"])
    return Row("peak memory of 3 epochs over all images, squeezenet1_1 at 64 px / of 1", long, short, "GiB", None)


def rows_of(options: argparse.Namespace) -> dict[str, tuple[Callable[[], Row | list[Row]], list[str | None]]]:
    """What can be measured, with what it needs."""
    uc, euro, weights, repeats = options.ucmerced, options.eurosat, options.weights, options.repeats
    probe, last = ["linear_probe", 20, [], 10], ["last_layers", 10, ["--cached_views", "2"], 2.5]
    sgd_probe = ["linear_probe", ["--probe_solver", "sgd", "--use_augmentation", "false"]]
    two_views = ["last_layers", ["--cached_views", "2"]]
    return {
        "resnet50": (lambda: against_the_bare_step(uc, "resnet50", 224, 0.95, repeats, 6), [uc]),
        "mobilenet_v2": (lambda: against_the_bare_step(uc, "mobilenet_v2", 224, 0.95, repeats, 10), [uc]),
        "resnet18": (lambda: against_the_bare_step(euro, "resnet18", 64, 0.9, repeats, 40), [euro]),
        "vit_b_16": (lambda: against_the_bare_step(uc, "vit_b_16", 224, None, repeats, 3), [uc]),
        "plain": (lambda: against_the_plain_loop(uc, repeats), [uc]),
        "probe": (lambda: whole_command(options, *probe), [uc, weights]),
        "last_layers": (lambda: whole_command(options, *last), [uc, weights]),
        "probe_cache": (lambda: with_and_without_the_cache(options, *sgd_probe), [uc, weights]),
        "last_layers_cache": (lambda: with_and_without_the_cache(options, *two_views), [uc, weights]),
        "pipeline": (lambda: pipeline(uc, repeats), [uc]),
        "import": (lambda: import_time(repeats), []),
        "memory": (lambda: memory(euro, options.runs), [euro]),
    }


def heading(options: argparse.Namespace) -> str:
    import torch
    import torchvision

    shown = [
        f"--{name} {Path(value).name}"
        for name in ("ucmerced", "eurosat", "weights")
        if (value := getattr(options, name))
    ]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    processor = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                      if line.startswith("model name")), platform.machine())  # fmt: skip
    return "\n".join(
        [
            f"# {options.title}",
            "",
            f"Measured {datetime.now(timezone.utc):%Y-%m-%d} on {usable_cores()} cores of {processor}, {gpu}, "
            f"Python {platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}.",
            "",
            "```",
            f"python tests/bench/speed.py {' '.join(shown)} --repeats {options.repeats} --runs {options.runs}"
            + (f" --size {options.size}" if options.size != 224 else ""),
            "```",
            "",
            "Ratios are of pairs measured one after the other; median, and lowest to highest.",
            "",
            "| what | ours | against | unit | ratio | bar | pairs | |",
            "|---|---|---|---|---|---|---|---|",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ucmerced", help="folder of UC Merced's class folders, or of any images of 256 px")
    parser.add_argument("--eurosat", help="folder of EuroSAT's class folders, or of any images of 64 px")
    parser.add_argument("--weights", help="ImageNet weights of mobilenet_v2")
    parser.add_argument("--rows", nargs="+", help="which rows; unset: all")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--runs", type=int, default=2, help="of the rows that train whole runs; default: %(default)s")
    parser.add_argument("--size", type=int, default=224, help="images of the rows that train whole runs, in pixels")
    parser.add_argument("--title", default="Speed")
    parser.add_argument("--table", type=Path, help="Markdown file to write; the JSON lies beside it")
    options = parser.parse_args()
    if options.eurosat is None:
        options.eurosat = str(scenes_folder())
        print("no --eurosat DIR: its rows take the built-in scenes, of 64 px too", file=sys.stderr)
    known = rows_of(options)
    unknown = set(options.rows or ()) - set(known)
    if unknown:
        parser.error(f"no row {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    found: list[Row] = []
    for name in options.rows or known:
        measure, needs = known[name]
        if not all(needs):
            print(f"{name}: left out, needs --ucmerced, --eurosat or --weights", file=sys.stderr)
            continue
        rows = measure()
        found += rows if isinstance(rows, list) else [rows]
        print("| " + " | ".join(found[-1].cells()) + " |", file=sys.stderr, flush=True)
        text = heading(options) + "\n" + "\n".join("| " + " | ".join(row.cells()) + " |" for row in found) + "\n"
        if options.table:  # after every row: some take many minutes
            options.table.write_text(text)
            options.table.with_suffix(".json").write_text(
                json.dumps([row.as_dict() for row in found], indent=1) + "\n"
            )
    print(text if found else "nothing was measured")


if __name__ == "__main__":
    main()
