"""The checking command: ``sat-vg check DIR`` tells what is wrong with a data set before anything is trained on it."""

import argparse
import json
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.configs.validation import RULES, describe_problem
from sat_vg.backbone_finetuning.data.checks import READABLE_IMAGES, BadImage, examine_images
from sat_vg.backbone_finetuning.data.duplicates import (
    Copies,
    describe_across,
    find_near,
    list_copies,
    perceptual_hash,
    with_copies_together,
)
from sat_vg.backbone_finetuning.data.sources import Splits
from sat_vg.backbone_finetuning.data.statistics import Look, Statistics, class_table, look_at, summarise_looks
from sat_vg.backbone_finetuning.preparation import load_splits
from sat_vg.backbone_finetuning.reports.tables import text_table
from sat_vg.backbone_finetuning.utils.cache_folder import cache_folder
from sat_vg.backbone_finetuning.utils.errors import ConfigError, DataError
from sat_vg.backbone_finetuning.utils.exit_codes import run_command
from sat_vg.backbone_finetuning.utils.printable import one_line
from sat_vg.backbone_finetuning.utils.terminal import say

_LISTED = 10
_FLAT = 16  # thumbnails of a smaller range of greys look alike whatever they show
_IMBALANCE = 10
_FEW = 10


@dataclass
class Findings:
    """What a check found.

    Attributes:
        splits: the images that can be read, split as a training would.
        statistics: of train's images; None if none can be read.
        unreadable: images that cannot be decoded.
        copies: groups of images with the same pixels.
        near: pairs of paths that look alike.
        errors: what would stop or spoil a training, in words.
        warnings: what deserves a look, in words.
    """

    splits: Splits
    statistics: Statistics | None = None
    unreadable: list[BadImage] = field(default_factory=list)
    copies: list[Copies] = field(default_factory=list)
    near: list[tuple[str, str]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The findings as plain data, nothing cut off."""
        names = [split.name for split in self.splits.parts]
        numbers = self.statistics
        return {
            "description": self.splits.description,
            "classes": {str(name): dict(zip(names, row, strict=True)) for name, *row in class_table(self.splits)},
            "sizes": {f"{w}x{h}": count for (w, h), count in numbers.sizes.items()} if numbers else {},
            "grey": numbers.grey if numbers else 0,
            "mean": numbers.mean if numbers else None,
            "std": numbers.std if numbers else None,
            "unreadable": [{"path": bad.path, "reason": bad.reason} for bad in self.unreadable],
            "copies": [
                [
                    {"split": p.split, "path": p.path, "class": self.splits.train.name_of(p.label)}
                    for p in group.places
                ]
                for group in self.copies
            ],
            "near_copies": self.near,
            "errors": self.errors,
            "warnings": self.warnings,
        }


def main(arguments: list[str] | None = None, prog: str = "sat-vg check") -> int:
    """Run the command; returns its exit code."""
    defaults = FinetuneConfig()
    parser = argparse.ArgumentParser(
        prog=prog,
        description=(
            "Read every image of a data set and tell what a training would stumble over: images that cannot be read, "
            "the same image in train and val or under two labels, near copies, classes out of balance, odd sizes. "
            "Nothing is changed. Exit codes: 0 clean, or warnings only; 2 errors."
        ),
    )
    parser.add_argument(
        "data", metavar="DATA", help="class folders, or train/ and val/ with class folders, or a .csv table"
    )
    parser.add_argument(
        "--allow_outside",
        choices=("true", "false"),
        default="false",
        help="whether a table may name images outside its own folder (%(default)s)",
    )
    for name, kind in (("train_split", str), ("val_split", str), ("val_fraction", float), ("seed", int)):
        default = getattr(defaults, name)
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"as for the training ({default})")
    parser.add_argument("--json", action="store_true", help="one JSON object that leaves nothing out")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    return run_command(lambda: check(options))


def check(options: argparse.Namespace) -> None:
    """Check a data set and print what was found.

    Raises:
        ConfigError: an option is out of range.
        DataError: the folder or table is no data set, or the data have errors.
    """
    names = ("train_split", "val_split", "val_fraction", "seed")
    settings = {name: getattr(options, name) for name in names}
    wrong = [describe_problem(name, value) for name, value in settings.items() if not RULES[name].holds(value)]
    if wrong:
        raise ConfigError("\n".join(wrong))
    config = FinetuneConfig(dataset_path=options.data, allow_outside=options.allow_outside == "true", **settings)
    findings = examine(load_splits(config))
    say(json.dumps(findings.to_dict(), indent=1) if options.json else report(findings))
    if findings.errors:
        raise DataError(
            f"the data have {_counted(len(findings.errors), 'error')}; a training would stop or be spoilt"
        )


def examine(splits: Splits) -> Findings:
    """Read all images of the splits and judge them."""
    paths = [path for split in splits.parts for path in split.paths]
    bad, contents, looks, _ = examine_images(paths, record=cache_folder() / READABLE_IMAGES, look=look_at)
    readable = splits.without({image.path for image in bad})
    findings = Findings(readable, unreadable=bad)
    if bad:
        listed = "".join(f"\n  {image.path!r}: {image.reason}" for image in bad[:_LISTED])
        findings.errors.append(f"{len(bad)} of {len(paths)} images cannot be read{listed}{_more(len(bad), _LISTED)}")
    seen = [looks[path] for path in readable.train.paths]
    findings.statistics = summarise_looks(seen) if seen else None
    _judge_copies(findings, contents)
    _judge_near_copies(findings, contents, looks)
    _judge_classes(findings)
    return findings


def _judge_copies(findings: Findings, contents: dict[str, int]) -> None:
    findings.splits, copies, moved = with_copies_together(findings.splits, contents)
    if moved:
        findings.warnings.append(f"copies lie in train and val as drawn; a training moves {moved} images")
    findings.copies = copies
    across = [group for group in copies if group.across]
    if across:
        findings.errors.append(f"{describe_across(across)}; remove one of each:\n{list_copies(across)}")
    conflicts = [group for group in copies if group.conflicting]
    if conflicts:
        findings.errors.append(
            f"{_counted(len(conflicts), 'image')} with more than one label; keep the right one:\n"
            f"{list_copies(conflicts)}"
        )
    within = [group for group in copies if not group.across and not group.conflicting]
    if within:
        extra = sum(len(group.places) - 1 for group in within)
        findings.warnings.append(
            f"{_counted(extra, 'superfluous copy', 'superfluous copies')}:\n{list_copies(within)}"
        )


def _judge_near_copies(findings: Findings, contents: dict[str, int], looks: dict[str, Look]) -> None:
    """Pairs that look alike; of exact copies only the first takes part."""
    splits = findings.splits
    split_of = {path: split.name for split in splits.parts for path in split.paths}
    first_of: dict[int, str] = {}
    for path in split_of:
        first_of.setdefault(contents[path], path)
    paths = list(first_of.values())
    if not paths:
        return
    small = np.stack([looks[path].small for path in paths])
    flat = np.ptp(small.reshape(len(small), -1).astype(np.int16), axis=1) < _FLAT
    pairs = find_near(np.stack([perceptual_hash(one) for one in small]), small, skip=flat)
    findings.near = [(paths[i], paths[j]) for i, j in pairs]
    if findings.near:
        across = sum(split_of[one] != split_of[other] for one, other in findings.near)
        listed = "".join(f"\n  {one!r} ~ {other!r}" for one, other in findings.near[:_LISTED])
        findings.warnings.append(
            f"{_counted(len(findings.near), 'pair')} of images look alike, {across} of them across splits; they "
            f"may be copies that were compressed or resized{listed}{_more(len(findings.near), _LISTED)}"
        )


def _judge_classes(findings: Findings) -> None:
    splits, numbers = findings.splits, findings.statistics
    counts = dict(zip(splits.class_names, splits.train.class_counts(), strict=True))
    for what, split in (("train", splits.train), ("val", splits.val)):
        empty = [name for name, count in zip(splits.class_names, split.class_counts(), strict=True) if not count]
        if empty:
            (findings.errors if what == "train" or not len(split) else findings.warnings).append(
                f"{what} has no readable image of {', '.join(map(repr, empty[:_LISTED]))}{_more(len(empty), _LISTED)}"
            )
    most, fewest = max(counts, key=lambda name: counts[name]), min(counts, key=lambda name: counts[name])
    if counts[most] > _IMBALANCE * counts[fewest] > 0:
        ratio = counts[most] / counts[fewest]
        findings.warnings.append(
            f"train has {ratio:.0f} times as many images of {most!r} as of {fewest!r}; accuracy will say little of "
            "the rare classes"
        )
    few = [name for name, count in counts.items() if 0 < count < _FEW]
    if few:
        findings.warnings.append(
            f"train has fewer than {_FEW} images of {', '.join(map(repr, few[:_LISTED]))}{_more(len(few), _LISTED)}"
        )
    if numbers is not None and 0 < numbers.grey < len(splits.train):
        findings.warnings.append(f"{numbers.grey} of {len(splits.train)} train images are grey, the others in colour")


def report(findings: Findings) -> str:
    """The findings as text for a person."""
    splits, numbers = findings.splits, findings.statistics
    parts = [split.name for split in splits.parts]
    rows = [(one_line(str(name)), *counts) for name, *counts in class_table(splits)]
    lines = [f"data: {splits.description}", "", text_table(("class", *parts), rows)]
    if numbers is not None:
        sizes = [f"{w} x {h} ({count})" for (w, h), count in numbers.sizes.items()]
        bands = zip(("red", "green", "blue"), numbers.mean, numbers.std, strict=True)
        lines += [
            "",
            f"sizes in train: {', '.join(sizes[:5])}" + (f" and {len(sizes) - 5} others" if len(sizes) > 5 else ""),
            "mean and deviation in train: " + ", ".join(f"{name} {m:.3f} ± {s:.3f}" for name, m, s in bands),
        ]
    kinds = Counter({"error": len(findings.errors), "warning": len(findings.warnings)})
    lines += ["", *(f"error: {text}" for text in findings.errors), *(f"warning: {t}" for t in findings.warnings)]
    lines.append(", ".join(_counted(kinds[kind], kind) for kind in ("error", "warning")))
    return "\n".join(lines)


def _counted(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _more(number: int, listed: int) -> str:
    return f" and {number - listed} more" if number > listed else ""


if __name__ == "__main__":
    sys.exit(main(prog="python -m sat_vg.backbone_finetuning.check"))
