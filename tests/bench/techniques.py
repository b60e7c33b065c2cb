"""What each technique adds over the plain full fine-tune, and what it costs, on few images.

    python tests/bench/techniques.py --ucmerced DIR --weights mobilenet_v2-imagenet.pth --work DIR \
        --results techniques.json --table techniques.md

UC Merced: 20 images of every class are the validation images, always the same; of the other 80 the seed draws 10 for
training. Every row is the training command with its flags added; all rows of a seed see the same images. Stopped, it
goes on where it was. ``--rows`` and ``--seeds`` choose some.
"""

import argparse
import random
import shutil
from pathlib import Path

from runs import (
    LEGEND,
    Record,
    Run,
    add_options,
    difference,
    flags_of,
    link_images,
    machine,
    paragraph,
    ratio,
    run_all,
    shown,
    spread,
    tell,
)

BASELINE = "full"
ROWS: dict[str, list[str]] = {
    "full": ["--strategy", "full"],
    "linear_probe, exact": ["--strategy", "linear_probe"],
    "linear_probe, sgd": ["--strategy", "linear_probe", "--probe_solver", "sgd", "--learning_rate", "1e-2"],
    "last_layers": ["--strategy", "last_layers", "--last_layers", "3"],
    "progressive": ["--strategy", "progressive"],
    "lp_ft": ["--strategy", "lp_ft"],
    "lp_ft, wise_ft": ["--strategy", "lp_ft", "--wise_ft", "true"],
    "wise_ft": ["--strategy", "full", "--wise_ft", "true"],
    "layer_decay 0.8": ["--strategy", "full", "--layer_decay", "0.8"],
    "head_lr_scale 10": ["--strategy", "full", "--head_lr_scale", "10"],
    "ema_decay 0.95": ["--strategy", "full", "--ema_decay", "0.95"],
    "label_smoothing 0.1": ["--strategy", "full", "--label_smoothing", "0.1"],
    "mixup 0.2": ["--strategy", "full", "--mixup_alpha", "0.2"],
    "cutmix 1": ["--strategy", "full", "--cutmix_alpha", "1"],
    "mixup 0.2 and cutmix 1": ["--strategy", "full", "--mixup_alpha", "0.2", "--cutmix_alpha", "1"],
    **{
        f"augmentation {name}": ["--strategy", "full", "--augmentation", name]
        for name in ("none", "basic", "turns", "randaugment", "trivialaugment", "autoaugment", "advanced")
    },
    "weight_decay 0": ["--strategy", "full", "--weight_decay", "0"],
    "weight_decay 0.05": ["--strategy", "full", "--weight_decay", "0.05"],
    "dropout 0.2": ["--strategy", "full", "--dropout", "0.2"],
    "sgd": ["--strategy", "full", "--optimizer", "sgd", "--learning_rate", "1e-2"],
    "gradient_clip 0": ["--strategy", "full", "--gradient_clip", "0"],
    "micro_batch_size 4": ["--strategy", "full", "--micro_batch_size", "4"],
    "warmup_epochs 0": ["--strategy", "full", "--warmup_epochs", "0"],
    "lr_scheduler step": ["--strategy", "full", "--lr_scheduler", "step"],
    "lr_scheduler plateau": ["--strategy", "full", "--lr_scheduler", "plateau"],
    "focal_gamma 2": ["--strategy", "full", "--focal_gamma", "2"],
    "class_weights balanced": ["--strategy", "full", "--class_weights", "balanced"],
    "sampler weighted": ["--strategy", "full", "--sampler", "weighted"],
    "sampler class_balanced": ["--strategy", "full", "--sampler", "class_balanced"],
    "train_image_size 64,96": ["--strategy", "full", "--train_image_size", "64,96"],
}
_VALIDATION, _TRAINING = 20, 10  # images of each class


def link_subset(root: Path, folder: Path, seed: int) -> Path:
    """``folder/seedN/train`` and ``val`` with links to the images of a seed."""
    classes = sorted(path for path in root.iterdir() if path.is_dir())
    if not classes:
        raise SystemExit(f"{root} holds no class folders")
    target = folder / f"seed{seed}"
    shutil.rmtree(target, ignore_errors=True)
    for one in classes:
        images = sorted(path for path in one.iterdir() if path.is_file())
        random.Random(one.name).shuffle(images)
        rest = images[_VALIDATION:]
        drawn = random.Random(f"{one.name}/{seed}").sample(rest, min(_TRAINING, len(rest)))
        link_images(images[:_VALIDATION], target / "val" / one.name)
        link_images(drawn, target / "train" / one.name)
    return target


def common_flags(options: argparse.Namespace) -> list[str]:
    """What all rows have in common, but for the images."""
    return flags_of(
        backbone=options.backbone,
        weights=options.weights,
        image_size=options.image_size,
        num_epochs=options.epochs,
        batch_size=16,
        learning_rate=options.learning_rate,
    )


def table(record: Record, rows: list[str]) -> list[str]:
    """The Markdown table of the rows that have been measured."""
    best, last, cost = ({row: record.of(row, name) for row in rows} for name in ("best", "last", "cpu_seconds"))
    lines = [
        "| | flags | best, % | last, % | best − full | last − full | time / full | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if best[row]:
            lines.append(
                f"| {row} | `{' '.join(ROWS[row])}` | {spread(list(best[row].values()))} "
                f"| {spread(list(last[row].values()))} "
                + ("| | " if row == BASELINE else f"| {difference(best[row], best[BASELINE])} "
                   f"| {difference(last[row], last[BASELINE])} ")
                + f"| {ratio(cost[row], cost[BASELINE])} | {len(best[row])} |"
            )  # fmt: skip
    return lines


def describe(record: Record, options: argparse.Namespace) -> str:
    """The page: how it was measured, and the table."""
    seeds = " ".join(map(str, options.seeds))
    seconds = record.of(BASELINE, "cpu_seconds").values()
    base = f" ({sum(seconds) / len(seconds):.0f} s of one core)" if seconds else ""
    return "\n".join(
        [
            "# What each technique adds",
            "",
            paragraph(machine()),
            "",
            "```",
            f"python tests/bench/techniques.py --ucmerced {options.ucmerced.name} --weights {options.weights.name} "
            f"--epochs {options.epochs} --learning_rate {options.learning_rate:g} --seeds {seeds} --work DIR "
            "--results techniques.json --table techniques.md",
            "```",
            "",
            paragraph(
                f"UC Merced, {_TRAINING} training images of each class, drawn by the seed; {_VALIDATION} others of",
                "each are the validation images, the same for all seeds. Every run is the training command with",
                f"these settings and the flags of its row; the first row is the plain full fine-tune{base}:",
            ),
            "",
            "```text",
            shown(common_flags(options)),
            "```",
            "",
            paragraph(LEGEND),
            "",
            *table(record, list(ROWS)),
        ]
    ) + "\n"  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ucmerced", type=Path, required=True, help="folder of the 21 class folders")
    add_options(parser, list(ROWS))
    parser.add_argument("--image_size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()

    rows = list(dict.fromkeys([BASELINE, *options.rows]))  # the others are measured against it
    data = {seed: link_subset(options.ucmerced, options.work / "data", seed) for seed in options.seeds}
    common = common_flags(options)
    runs = [
        Run(row, seed, ("--dataset_path", str(data[seed]), *common, *ROWS[row]))
        for seed in options.seeds
        for row in rows
    ]
    record = Record(options.results)
    failed = run_all(runs, record, options.work / "runs", options.jobs)
    tell(describe(record, options), options.table, failed)


if __name__ == "__main__":
    main()
