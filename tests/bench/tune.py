"""What a search brings and costs: ``sat-vg tune`` on few images of UC Merced, its best against the defaults.

    python tests/bench/tune.py --ucmerced DIR --weights mobilenet_v2-imagenet.pth --work DIR --results tune.json \
        --table tuning.md

The search sees 20 images of each class, half of them for validation. Its best settings and the defaults are then
trained with three fresh seeds; each seed draws 10 images of each class for training and 20 for validation from the
other 80, which the search has never seen. Stopped, it goes on where it was.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from runs import (
    Record,
    Run,
    difference,
    environment,
    flags_of,
    link_images,
    machine,
    paragraph,
    run_all,
    shown,
    spread,
)

SEARCH = (
    "learning_rate=1e-4..1e-2:log",
    "weight_decay=1e-4,1e-3,1e-2",
    "label_smoothing=0,0.1",
    "strategy=full,lp_ft",
)
SEEDS = (1, 2, 3)
ROWS = ("defaults", "best of the search")
_SEARCHED, _TRAINING, _VALIDATION = 20, 10, 20  # images of each class


def link_search(root: Path, folder: Path) -> Path:
    """The images of the search."""
    shutil.rmtree(folder, ignore_errors=True)
    for one in classes_of(root):
        images = sorted(one.iterdir())[:_SEARCHED]
        link_images(images[: _SEARCHED // 2], folder / "train" / one.name)
        link_images(images[_SEARCHED // 2 :], folder / "val" / one.name)
    return folder


def link_fresh(root: Path, folder: Path, seed: int) -> Path:
    """Images that the search has not seen, drawn by a seed."""
    shutil.rmtree(folder, ignore_errors=True)
    for one in classes_of(root):
        images = sorted(one.iterdir())[_SEARCHED:]
        random.Random(f"{seed} {one.name}").shuffle(images)
        link_images(images[:_TRAINING], folder / "train" / one.name)
        link_images(images[_TRAINING : _TRAINING + _VALIDATION], folder / "val" / one.name)
    return folder


def classes_of(root: Path) -> list[Path]:
    """The class folders."""
    found = sorted(path for path in root.iterdir() if path.is_dir())
    if not found:
        raise SystemExit(f"{root} holds no class folders")
    return found


def search(data: Path, out: Path, flags: list[str], trials: int, work: Path) -> tuple[dict, float]:
    """What tuning.json holds, and the processor's seconds of all calls that had trials to do."""
    results, spent = out / "tuning.json", out.with_name(f"{out.name}_seconds.json")
    seconds = json.loads(spent.read_text()) if spent.exists() else 0.0
    was_done = results.exists() and len(json.loads(results.read_text())["trials"]) >= trials
    words = [sys.executable, "-m", "sat_vg", "tune", str(data), "--search", *SEARCH, "--trials", str(trials)]
    process = subprocess.Popen([*words, "--out", str(out), *flags], env=environment(work))
    # Ctrl-C reaches the search as well, which saves its state; what it has cost so far is wanted.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    _, status, usage = os.wait4(process.pid, 0)
    signal.signal(signal.SIGINT, before)
    process.returncode = os.waitstatus_to_exitcode(status)
    if not was_done:
        seconds += usage.ru_utime + usage.ru_stime
        spent.write_text(json.dumps(seconds))
    if process.returncode:
        raise SystemExit(f"the search ended with {process.returncode}; the same command goes on")
    return json.loads(results.read_text()), seconds


def page(given: argparse.Namespace, found: dict, seconds: float, best: list[str], record: Record) -> str:
    """The measurement as Markdown."""
    one_run = sum(record.of("defaults", "cpu_seconds").values()) / len(SEEDS)
    states = [trial["state"] for trial in found["trials"]]
    lines = ["| | fresh seeds, best epoch, % | last epoch, % | best − defaults |", "|---|---|---|---|"]
    for row in ROWS:
        ours, last = record.of(row, "best"), record.of(row, "last")
        gain = "" if row == ROWS[0] else difference(ours, record.of(ROWS[0], "best"))
        lines.append(f"| {row} | {spread(list(ours.values()))} | {spread(list(last.values()))} | {gain} |")
    return "\n\n".join(
        [
            "# What a search brings and costs",
            paragraph(machine()),
            f"```\npython tests/bench/tune.py {shown(sys.argv[1:])}\n```",
            paragraph(
                f"UC Merced at {given.image_size} pixels, {_TRAINING} training images of each class,",
                f"MobileNetV2 from ImageNet weights, {given.epochs} epochs of batches of 16. Searched on images",
                "of its own:",
                f"`{' '.join(SEARCH)}`. The defaults and the best settings were then trained on images",
                "that the search had not seen, drawn by three fresh seeds with",
                f"{_VALIDATION} validation images of each class.",
            ),
            paragraph(
                f"The search: {len(states)} trials, {states.count('pruned')} of them stopped early,",
                f"{states.count('failed')} failed; {seconds:.0f} s of one core, which is {seconds / one_run:.1f}",
                f"times a training with the defaults ({one_run:.0f} s). Its best: `{shown(best)}`, with",
                f"{100 * found['best']['score']:.2f} % on the search's own validation images, which chose it.",
            ),
            "\n".join(lines),
            paragraph("Bold differences are beyond chance by Student's t at 95 %, seed by seed."),
        ]
    )


def options() -> argparse.Namespace:
    """What the command was given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--ucmerced", type=Path, required=True, help="folder with a folder for each class")
    add("--weights", type=Path, required=True, help="ImageNet weights of MobileNetV2")
    add("--work", type=Path, required=True)
    add("--results", type=Path, required=True, help="JSON file, added to after every run")
    add("--table", type=Path, help="Markdown file to write")
    add("--trials", type=int, default=16)
    add("--epochs", type=int, default=6)
    add("--image_size", type=int, default=64)
    add("--jobs", type=int, default=1, help="runs at a time after the search, of one thread each")
    return parser.parse_args()


def main() -> None:
    given = options()
    given.work.mkdir(parents=True, exist_ok=True)
    flags = flags_of(
        backbone="mobilenet_v2", weights=given.weights.resolve(), image_size=given.image_size,
        num_epochs=given.epochs, batch_size=16,
    )  # fmt: skip
    data = link_search(given.ucmerced, given.work / "search")
    found, seconds = search(data, given.work / "tuning", flags, given.trials, given.work)
    best = [f"--{n}={v}" if isinstance(v, str) else f"--{n}={v!r}" for n, v in found["best"]["values"].items()]
    record = Record(given.results)
    fresh = {seed: link_fresh(given.ucmerced, given.work / f"seed{seed}", seed) for seed in SEEDS}
    runs = [
        Run(row, seed, ("--dataset_path", str(fresh[seed]), *flags, *own))
        for seed in SEEDS
        for row, own in zip(ROWS, ([], best), strict=True)
    ]
    failed = run_all(runs, record, given.work, given.jobs)
    if failed:
        raise SystemExit(f"{failed} runs failed; the same command runs them again")
    text = page(given, found, seconds, best, record)
    print(f"\n{text}")
    if given.table:
        given.table.write_text(text + "\n")


if __name__ == "__main__":
    main()
