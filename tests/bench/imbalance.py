"""What helps a class that is rare in training: its recall and the accuracy of all, with each remedy.

    python tests/bench/imbalance.py --eurosat DIR --weights mobilenet_v2-imagenet.pth --work DIR \
        --results imbalance.json --table imbalance.md

Of EuroSAT's classes so many images of each are drawn by the seed; of one class hundred times fewer are trained on,
while the validation images stay balanced. Every row is the training command with its flags added. Stopped, it goes on
where it was. The recall is that of ``best_model.pt``, as the evaluation command finds it.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

from runs import (
    LEGEND,
    Record,
    Run,
    add_options,
    difference,
    environment,
    flags_of,
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

BASELINE = "plain"
ROWS: dict[str, list[str]] = {
    "plain": [],
    "class_weights balanced": ["--class_weights", "balanced"],
    "class_weights effective": ["--class_weights", "effective"],
    "focal_gamma 2": ["--focal_gamma", "2"],
    "sampler weighted": ["--sampler", "weighted"],
    "sampler class_balanced": ["--sampler", "class_balanced"],
}
_VALIDATION = 100  # images of each class


def link_subset(root: Path, folder: Path, seed: int, options: argparse.Namespace) -> Path:
    """``folder/seedN/train`` and ``val`` with links to the images of a seed."""
    classes = sorted(path for path in root.iterdir() if path.is_dir())
    if options.rare not in {one.name for one in classes}:
        raise SystemExit(
            f"{root} has no class folder {options.rare}; it has {', '.join(one.name for one in classes)}"
        )
    target = folder / f"seed{seed}_{options.images}_{options.rare}"
    shutil.rmtree(target, ignore_errors=True)
    for one in classes:
        images = sorted(path for path in one.iterdir() if path.is_file())
        random.Random(f"{one.name}/{seed}").shuffle(images)
        count = num_rare(options) if one.name == options.rare else options.images
        link_images(images[:_VALIDATION], target / "val" / one.name)
        link_images(images[_VALIDATION : _VALIDATION + count], target / "train" / one.name)
    return target


def num_rare(options: argparse.Namespace) -> int:
    """Training images of the rare class."""
    return max(1, round(options.images / 100))


def common_flags(options: argparse.Namespace) -> list[str]:
    """What all rows have in common, but for the images."""
    return flags_of(
        backbone=options.backbone,
        weights=options.weights,
        image_size=64,
        strategy="full",
        num_epochs=options.epochs,
        batch_size=32,
        learning_rate=options.learning_rate,
    )


def with_recall(folder: Path, rare: str) -> dict[str, float]:
    """A run's figures, and what ``sat-vg evaluate`` says of the rare class."""
    command = [sys.executable, "-m", "sat_vg", "evaluate", f"{folder}/checkpoints/best_model.pt",
               "--out", f"{folder}/evaluation", "--num_workers", "0"]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment(folder))
    scores = json.loads((folder / "evaluation/evaluation.json").read_text())["classes"][rare]
    return {**from_metrics(folder), "recall": scores["recall"], "precision": scores["precision"]}


def table(record: Record) -> list[str]:
    """The Markdown table of the rows that have been measured."""
    names = ("recall", "precision", "best", "cpu_seconds")
    recall, precision, best, cost = ({row: record.of(row, name) for row in ROWS} for name in names)
    lines = [
        "| | flags | recall of the rare class, % | its precision, % | accuracy, % | recall − plain "
        "| accuracy − plain | time / plain | seeds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row, flags in ROWS.items():
        if best[row]:
            given = f"`{' '.join(flags)}`" if flags else ""
            lines.append(
                f"| {row} | {given} | {spread(list(recall[row].values()))} | {spread(list(precision[row].values()))} "
                f"| {spread(list(best[row].values()))} "
                + ("| | " if row == BASELINE else f"| {difference(recall[row], recall[BASELINE])} "
                   f"| {difference(best[row], best[BASELINE])} ")
                + f"| {ratio(cost[row], cost[BASELINE])} | {len(best[row])} |"
            )  # fmt: skip
    return lines


def describe(record: Record, options: argparse.Namespace) -> str:
    """The page: how it was measured, and the table."""
    seeds = " ".join(map(str, options.seeds))
    return "\n".join(
        [
            "# A rare class",
            "",
            paragraph(machine()),
            "",
            "```",
            f"python tests/bench/imbalance.py --eurosat {options.eurosat.name} --weights {options.weights.name} "
            f"--images {options.images} --rare {options.rare} --epochs {options.epochs} --learning_rate "
            f"{options.learning_rate:g} --seeds {seeds} --work DIR --results imbalance.json --table imbalance.md",
            "```",
            "",
            paragraph(
                f"EuroSAT, {options.images} training images of each class, but {num_rare(options)} of",
                f"{options.rare}; {_VALIDATION} validation images of each class, {options.rare} too; all drawn by",
                "the seed. Every run is the training command with these settings and the flags of its row:",
            ),
            "",
            "```text",
            shown(common_flags(options)),
            "```",
            "",
            paragraph("Recall, precision and accuracy are those of `best_model.pt`.", LEGEND),
            "",
            *table(record),
        ]
    ) + "\n"  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eurosat", type=Path, required=True, help="folder of the 10 class folders")
    add_options(parser, list(ROWS))
    parser.add_argument("--images", type=int, default=300, help="training images of each class but the rare one")
    parser.add_argument("--rare", default="Highway", help="the class that has a hundredth of that")
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()

    rows = list(dict.fromkeys([BASELINE, *options.rows]))  # the others are measured against it
    data = {seed: link_subset(options.eurosat, options.work / "data", seed, options) for seed in options.seeds}
    common = common_flags(options)
    runs = [
        Run(row, seed, ("--dataset_path", str(data[seed]), *common, *ROWS[row]))
        for seed in options.seeds
        for row in rows
    ]
    record = Record(options.results)
    failed = run_all(
        runs, record, options.work / "runs", options.jobs, lambda folder: with_recall(folder, options.rare)
    )
    tell(describe(record, options), options.table, failed)


if __name__ == "__main__":
    main()
