"""Few images of each class: recipes against full fine-tuning, one view against eight, on a test set.

    python tests/bench/small_data.py --data UCMerced --train 10 --weights mobilenet_v2-imagenet.pth --work DIR \
        --results small.json --table small.md

The seed draws ``--train`` images of each class to train on and 20 others to validate on; of the rest, up to
``--test`` of each class (70) are the test images, which nothing chooses on. Every row is the training command with
its flags; what is tested is its ``best_model.pt``, or the mean of three of them, whose trainings differ by their
seed alone. Stopped, it goes on where it was.
"""

import argparse
import json
import random
import resource
import shutil
import subprocess
import sys
from pathlib import Path

from runs import (
    RUN,
    TRAIN,
    Record,
    Run,
    add_options,
    difference,
    environment,
    from_metrics,
    link_images,
    machine,
    paragraph,
    ratio,
    run_all,
    shown,
    spread,
    tell,
)

BASELINE = "full"  # the defaults before decision 34
RECIPE = ["--config", "probe_first"]
ROWS: dict[str, list[str]] = {
    "full": ["--strategy", "full"],
    "defaults": [],
    "linear_probe": ["--strategy", "linear_probe"],
    "lp_ft": ["--strategy", "lp_ft"],
    "probe_first": RECIPE,
    "full, 1e-3, smoothing": ["--strategy", "full", "--learning_rate", "1e-3", "--label_smoothing", "0.1"],
    "probe_first, no smoothing": [*RECIPE, "--label_smoothing", "0"],
    "probe_first, wise_ft": [*RECIPE, "--wise_ft", "true"],
    "probe_first, mixup": [*RECIPE, "--mixup_alpha", "0.2"],
    "probe_first, mixup, wise_ft": [*RECIPE, "--mixup_alpha", "0.2", "--wise_ft", "true"],
    "probe_first, crop 0.8": [*RECIPE, "--crop_scale", "0.8"],
    "probe_first, turns": [*RECIPE, "--augmentation", "turns"],
    "probe_first, crop 0.8, smoothing 0.2": [*RECIPE, "--crop_scale", "0.8", "--label_smoothing", "0.2"],
    "full, crop 0.8, smoothing": ["--strategy", "full", "--crop_scale", "0.8", "--label_smoothing", "0.1"],
    "probe_first, layer_decay": [*RECIPE, "--layer_decay", "0.9"],
    "probe_first, lr 3e-3": [*RECIPE, "--learning_rate", "3e-3"],
    "probe_first, ema": [*RECIPE, "--ema_decay", "0.95"],
    "probe_first, three runs": RECIPE,
    "probe_first, crop 0.8, three runs": [*RECIPE, "--crop_scale", "0.8"],
    "probe_first, 40 epochs": [*RECIPE, "--num_epochs", "40"],
}
_VALIDATION = 20  # images of each class
_THREE = "three runs"


def link_split(root: Path, folder: Path, seed: int, train: int, test: int) -> Path:
    """``folder/DATA-TRAIN-seedN/train``, ``val`` and ``test`` with links to the images of a seed."""
    target = folder / f"{root.name}-{train}-seed{seed}"
    shutil.rmtree(target, ignore_errors=True)
    classes = sorted(path for path in root.iterdir() if path.is_dir())
    if not classes:
        raise SystemExit(f"{root} holds no class folders")
    for one in classes:
        images = sorted(path for path in one.iterdir() if path.is_file())
        random.Random(f"{one.name}/{seed}").shuffle(images)
        ends = (train, train + _VALIDATION, train + _VALIDATION + test)
        for split, start, end in zip(("train", "val", "test"), (0, *ends), ends, strict=False):
            link_images(images[start:end], target / split / one.name)
    return target


def tested(folder: Path) -> dict[str, float]:
    """Figures of a run, and those of its best model on the test images, by one view and by eight."""
    figures, began = from_metrics(folder), resource.getrusage(resource.RUSAGE_CHILDREN)
    run = json.loads((folder / RUN).read_text())
    models = [folder / "checkpoints/best_model.pt"]
    for more in (1000, 2000) if run["row"].endswith(_THREE) else ():
        place = folder / f"member{more}"
        models.append(place / "checkpoints/best_model.pt")
        own = ["--seed", str(run["seed"] + more), "--log_dir", str(place / "logs")]
        subprocess.run(
            [*TRAIN, *run["flags"], *own, "--checkpoint_dir", str(models[-1].parent)],
            env=environment(folder), check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    figures["more_cpu_seconds"] = ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime
    for views in (1, 8):
        out = folder / f"views{views}"
        command = [sys.executable, "-m", "sat_vg", "evaluate", str(models[0])]
        command += ["--ensemble", ",".join(map(str, models[1:]))] if models[1:] else []
        subprocess.run(
            [*command, "--split", "test", "--views", str(views), "--out", str(out)],
            env=environment(folder), check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        found = json.loads((out / "evaluation.json").read_text())
        figures |= {f"test, {views}": found["accuracy"], f"loss, {views}": found["loss"]}
    return figures


def table(record: Record, rows: list[str]) -> list[str]:
    """The Markdown table of the rows that have been measured."""
    lines = [
        "| | flags | 1 view, % | 8 views, % | 1 view − full | 8 views − full, 1 view "
        "| log-loss | CPU / full | seeds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    base, cost = record.of(BASELINE, "test, 1"), record.of(BASELINE, "cpu_seconds")
    for row in rows:
        one, eight = record.of(row, "test, 1"), record.of(row, "test, 8")
        if one:
            losses = [spread(list(record.of(row, f"loss, {views}").values()), 1) for views in (1, 8)]
            lines.append(
                f"| {row} | `{' '.join(ROWS[row])}` | {spread(list(one.values()))} | {spread(list(eight.values()))} "
                f"| {difference(one, base) if row != BASELINE else ''} | {difference(eight, base)} "
                f"| {' → '.join(losses)} | {ratio(record.of(row, 'cpu_seconds'), cost)} | {len(one)} |"
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of class folders")
    parser.add_argument("--train", type=int, default=10, help="images of each class to train on")
    parser.add_argument("--test", type=int, default=70, help="images of each class to test on, at most")
    add_options(parser, list(ROWS))
    parser.add_argument("--image_size", type=int, default=96)
    parser.add_argument("--num_epochs", type=int, help="of every row; unset: as each row says")
    options = parser.parse_args()
    common = ["--backbone", options.backbone, "--weights", str(options.weights),
              "--image_size", str(options.image_size), "--early_stopping_patience", "0",
              "--on_duplicates", "warn", "--num_workers", "0", "--log_every", "1000"]  # fmt: skip
    if options.num_epochs:
        common += ["--num_epochs", str(options.num_epochs)]
    rows = list(dict.fromkeys(options.rows))
    data = {
        seed: link_split(options.data, options.work / "data", seed, options.train, options.test)
        for seed in options.seeds
    }

    runs = [
        Run(row, seed, (*ROWS[row], "--dataset_path", str(data[seed]), *common))
        for seed in options.seeds
        for row in rows
    ]
    record = Record(options.results)
    failed = run_all(runs, record, options.work / "runs", options.jobs, tested)
    lines = [
        paragraph(
            f"{options.data.name}, {options.train} training images of each class, {options.backbone}, "
            f"{options.image_size} pixels.",
            machine(),
        ),
        "",
        "```text",
        shown([*TRAIN[1:], *common]),
        "```",
        "",
        *table(record, list(ROWS)),
        "",
    ]
    tell("\n".join(lines), options.table, failed)


if __name__ == "__main__":
    main()
