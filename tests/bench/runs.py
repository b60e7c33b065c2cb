"""What the benchmarks of many training runs share: runs side by side, a record that is gone on with, and tables.

Every run is the real training command in a process of its own, with one thread and a cache folder of its own. What it
cost is the processor's time, which, other than the clock's, depends little on what else the machine does.
"""

import argparse
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sat_vg.backbone_finetuning.utils.cores import usable_cores
from sat_vg.backbone_finetuning.utils.safe_files import write_text

TRAIN = [sys.executable, "-m", "sat_vg.backbone_finetuning.train"]
# Student's t for 95 %, by the number of seeds: how many standard errors a difference must be from 0.
_T = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}


def shown(flags: Iterable[str]) -> str:
    """Flags with the last names of paths: no machine's own folders."""
    return " ".join(Path(flag).name if "/" in flag else flag for flag in flags)


def paragraph(*sentences: str) -> str:
    """Text in lines as long as those of the other pages."""
    return textwrap.fill(" ".join(sentences), 118, break_long_words=False, break_on_hyphens=False)


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        row: of the table.
        seed: of the run, and of what is drawn of the data.
        flags: of the training command, but for seed and output folders.
    """

    row: str
    seed: int
    flags: tuple[str, ...]

    @property
    def shown(self) -> str:
        """The flags as they are kept and compared."""
        return shown(self.flags)


Measure = Callable[[Path], dict[str, float]]
RUN = "run.json"  # row, seed and flags of the run, for what measures it


class Record:
    """The figures of finished runs in a JSON file, which is written anew after each.

    Args:
        path: of the file; what it holds already is not run again, unless its flags have changed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []

    def has(self, run: Run) -> bool:
        """Whether the very same run has finished."""
        return any(self._is(kept, run) and kept["flags"] == run.shown for kept in self.runs)

    def add(self, run: Run, figures: Mapping[str, float]) -> None:
        """Keep a run's figures in place of those that it had with other flags."""
        self.runs = [kept for kept in self.runs if not self._is(kept, run)]
        self.runs.append({"row": run.row, "seed": run.seed, "flags": run.shown, **figures})
        write_text(self.path, json.dumps(self.runs, indent=1) + "\n")

    def of(self, row: str, name: str) -> dict[int, float]:
        """A figure of a row by seed."""
        return {kept["seed"]: kept[name] for kept in self.runs if kept["row"] == row and name in kept}

    @staticmethod
    def _is(kept: Mapping[str, Any], run: Run) -> bool:
        return kept["row"] == run.row and kept["seed"] == run.seed


def from_metrics(folder: Path) -> dict[str, float]:
    """Best and last validation accuracy of a run, and its epochs."""
    lines = [json.loads(line) for line in (folder / "logs/metrics.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if "val_accuracy" in line]
    return {
        "best": max(line["val_accuracy"] for line in epochs),
        "last": epochs[-1]["val_accuracy"],
        "epochs": len(epochs),
    }


def run_all(runs: Iterable[Run], record: Record, work: Path, jobs: int, measure: Measure = from_metrics) -> int:
    """Run what the record lacks, ``jobs`` at a time; returns how many failed.

    Args:
        runs: in the order in which they are begun.
        record: where figures go as soon as a run has finished.
        work: folder for what runs write, which is removed with each.
        jobs: runs at the same time, of one thread each.
        measure: reads a run's folder, which has ``logs`` and ``checkpoints``, once it has finished.
    """
    todo = [run for run in runs if not record.has(run)]
    print(f"{len(todo)} runs to do, {jobs} at a time; finished ones are in {record.path}", flush=True)
    failed = 0
    with ThreadPoolExecutor(jobs) as pool:
        begun = {pool.submit(_run_once, run, work, measure): run for run in todo}
        try:
            for number, future in enumerate(as_completed(begun), start=1):
                run, (figures, trouble) = begun[future], future.result()
                if figures is None:
                    failed += 1
                    print(f"[{number}/{len(todo)}] {run.row}, seed {run.seed}: FAILED\n{trouble}", flush=True)
                    continue
                record.add(run, figures)  # in this thread alone
                told = f"best {100 * figures['best']:.2f} %, {figures['cpu_seconds']:.0f} s"
                print(f"[{number}/{len(todo)}] {run.row}, seed {run.seed}: {told}", flush=True)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise SystemExit(f"stopped; {len(record.runs)} runs are kept, the same command goes on") from None
    return failed


def _run_once(run: Run, work: Path, measure: Measure) -> tuple[dict[str, float] | None, str]:
    """A run's figures, or None and what went wrong."""
    folder = work / f"{''.join(c if c.isalnum() else '_' for c in run.row)}_seed{run.seed}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    own = ["--seed", str(run.seed), "--log_dir", f"{folder}/logs", "--checkpoint_dir", f"{folder}/checkpoints"]
    (folder / RUN).write_text(json.dumps({"row": run.row, "seed": run.seed, "flags": run.flags}))
    began = time.perf_counter()
    with (folder / "out.txt").open("w") as out:
        process = subprocess.Popen(
            [*TRAIN, *run.flags, *own], stdout=out, stderr=subprocess.STDOUT, env=environment(folder)
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        return None, (folder / "out.txt").read_text()[-2000:]
    seconds, cpu_seconds = time.perf_counter() - began, usage.ru_utime + usage.ru_stime
    figures = measure(folder)
    cpu_seconds += figures.pop("more_cpu_seconds", 0)
    figures |= {"seconds": seconds, "cpu_seconds": cpu_seconds}
    shutil.rmtree(folder)
    return figures, ""


def environment(folder: Path) -> dict[str, str]:
    """One thread; nothing of earlier runs, so that each decodes its images itself."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "SAT_VG_CACHE": str(folder / "cache")}


def flags_of(**settings: object) -> list[str]:
    """Settings as flags of the training command, with those that runs of a benchmark have in common."""
    shared = {"early_stopping_patience": 0, "on_duplicates": "warn", "num_workers": 0, "log_every": 1000}
    return [part for name, value in {**settings, **shared}.items() for part in (f"--{name}", str(value))]


def link_images(images: Iterable[Path], folder: Path) -> None:
    """Fill a class folder with links to images."""
    folder.mkdir(parents=True, exist_ok=True)
    for image in images:
        link = folder / image.name
        link.symlink_to(image.resolve())


def spread(values: Sequence[float], scale: float = 100.0) -> str:
    """Mean ± standard deviation of the sample."""
    deviation = f" ± {scale * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{scale * statistics.mean(values):.2f}{deviation}"


def difference(ours: Mapping[int, float], baseline: Mapping[int, float], scale: float = 100.0) -> str:
    """Mean ± standard deviation of the differences seed by seed; bold where chance is an unlikely reason."""
    found = [scale * (ours[seed] - baseline[seed]) for seed in ours if seed in baseline]
    if not found:
        return ""
    mean = statistics.mean(found)
    if len(found) == 1:
        return f"{mean:+.2f}"
    deviation = statistics.stdev(found)
    is_clear = abs(mean) > _T.get(len(found), 2.0) * deviation / math.sqrt(len(found))
    text = f"{mean:+.2f} ± {deviation:.2f}"
    return f"**{text}**" if is_clear and mean else text


def ratio(ours: Mapping[int, float], baseline: Mapping[int, float]) -> str:
    """Median of the ratios seed by seed."""
    found = [ours[seed] / baseline[seed] for seed in ours if seed in baseline]
    return f"{statistics.median(found):.2f}" if found else ""


def add_options(parser: argparse.ArgumentParser, rows: Sequence[str]) -> None:
    """What both tables can be told."""
    add = parser.add_argument
    add("--weights", type=Path, required=True, help="ImageNet weights of the backbone")
    add("--work", type=Path, required=True, help="folder for links and what runs write")
    add("--results", type=Path, required=True, help="JSON file, added to after every run")
    add("--table", type=Path, help="Markdown file to write")
    add("--rows", nargs="+", choices=list(rows), default=list(rows), metavar="ROW")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--backbone", default="mobilenet_v2")
    add("--learning_rate", type=float, default=1e-3)
    add("--jobs", type=int, default=2, help="runs at a time, of one thread each")


def tell(text: str, table: Path | None, failed: int) -> None:
    """Print the page and write it."""
    print(f"\n{text}")
    if table:
        table.write_text(text)
    if failed:
        raise SystemExit(f"{failed} runs failed; the same command runs them again")


def machine() -> str:
    """Date, processor and versions, in one sentence."""
    import torch
    import torchvision

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.machine()
    return (
        f"Measured {datetime.now(timezone.utc):%Y-%m-%d} on {usable_cores()} cores of {processor}, Python "
        f"{platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}; one thread "
        "a run."
    )


LEGEND = (
    "Means ± standard deviations over the seeds. Differences to the first row are taken seed by seed, on the same "
    "images and the same split; bold ones are beyond chance by Student's t at 95 %. *best* is the epoch that "
    "`best_model.pt` holds, which is chosen on the same validation images and so flatters whatever chooses most; "
    "*last* is chosen by nothing. Time is the processor's, of the whole command, as a ratio to the first row."
)
