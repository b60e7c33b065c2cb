"""Problems of a data set: every image is read once, as a training would read it."""

import json
import sys
from collections import Counter
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sat_vg.backbone_finetuning.commands.check.cli import CheckOptions
from sat_vg.backbone_finetuning.commands.check.image_stats import ImageStats, RgbStats, Statistics, stats_of
from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.data.checks.duplicates import (
    Copies,
    describe_across,
    find_near,
    perceptual_hash,
    with_copies_together,
)
from sat_vg.backbone_finetuning.data.checks.image_traits import describe_traits
from sat_vg.backbone_finetuning.data.checks.readable import READABLE_IMAGES, BadImage, Examined, examine_images
from sat_vg.backbone_finetuning.data.sources.spatial_split import describe_neighbours
from sat_vg.backbone_finetuning.data.sources.splits import Splits
from sat_vg.backbone_finetuning.reports.tables import text_table
from sat_vg.backbone_finetuning.training.preparation import choose_bands, choose_levels, computed_cache, load_splits
from sat_vg.backbone_finetuning.utils.cache_folder import cache_folder
from sat_vg.backbone_finetuning.utils.errors import ConfigError, DataError
from sat_vg.backbone_finetuning.utils.printable import counted, list_lines, one_line, quote_some
from sat_vg.backbone_finetuning.utils.terminal import say

_FLAT = 16  # thumbnails of a smaller range of greys look alike whatever they show
_IMBALANCE = 10
_FEW = 10


@dataclass
class Findings:
    """What a check found."""

    splits: Splits  # the images that can be read, split as a training would
    stats: ImageStats = field(default_factory=RgbStats)  # kind of the images' statistics
    statistics: Statistics | None = None  # numbers on train's images; None if none can be read
    unreadable: list[BadImage] = field(default_factory=list)  # images that cannot be decoded
    copies: list[Copies] = field(default_factory=list)  # groups of images with the same pixels
    near: list[tuple[str, str]] = field(default_factory=list)  # pairs of paths whose images look alike
    errors: list[str] = field(default_factory=list)  # texts on what would stop or spoil a training
    warnings: list[str] = field(default_factory=list)  # texts on what may be wrong

    def to_dict(self) -> dict[str, Any]:
        """The findings as plain data, nothing cut off."""
        names = [split.name for split in self.splits.parts]
        numbers = self.statistics
        return {
            "description": self.splits.description,
            "classes": {str(name): dict(zip(names, row, strict=True)) for name, *row in _class_table(self.splits)},
            "sizes": {f"{w}x{h}": count for (w, h), count in numbers.sizes.items()} if numbers else {},
            "grey": numbers.grey if numbers else 0,
            "bands": list(self.stats.bands),
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


def check(options: CheckOptions) -> None:
    """Check a data set and print what was found; errors in the data become a DataError."""
    # A program reads the one object on standard output; all other lines are for the person beside it.
    with redirect_stdout(sys.stderr) if options.json else nullcontext():
        findings = find_faults(options)
    say(json.dumps(findings.to_dict(), indent=1) if options.json else report(findings))
    if findings.errors:
        raise DataError(f"the data have {counted(len(findings.errors), 'error')}; a training would stop or be spoilt")


def find_faults(options: CheckOptions) -> Findings:
    """Check a data set. Raises UserError where the options or the place are wrong."""
    if options.data is None and options.dataset is None:
        raise ConfigError(
            "there is nothing to check: name a folder of images or a .csv table, or a known data set, such as "
            "--dataset eurosat"
        )
    shared = {name: value for name, value in vars(options).items() if name not in ("data", "json")}
    config = FinetuneConfig(dataset_path=options.data, **shared)
    splits = load_splits(config)
    bands, levels = choose_bands(config, splits), choose_levels(config, splits)
    return examine(splits, stats_of(bands, levels, computed_cache(config)))


def examine(splits: Splits, stats: ImageStats) -> Findings:
    """Read all images of the splits and judge them."""
    paths = [path for split in splits.parts for path in split.paths]
    record = cache_folder() / READABLE_IMAGES
    examined = examine_images(paths, record=record, measure=stats.measure, decoder=stats.decoder)
    bad = examined.bad
    findings = Findings(splits.without({image.path for image in bad}), stats, unreadable=bad)
    if bad:
        listed = list_lines([f"{image.path!r}: {image.reason}" for image in bad])
        findings.errors.append(f"{len(bad)} of {len(paths)} images cannot be read\n{listed}")
    findings.warnings += [*splits.notes, *stats.warnings, *describe_traits(examined.traits)]
    findings.warnings += describe_neighbours(findings.splits)
    _judge_copies(findings, examined.contents)
    if len(findings.splits.train):
        try:
            findings.statistics = stats.summarise(findings.splits.train.paths, examined)
            findings.warnings.extend(findings.statistics.warnings)
        except DataError as error:
            findings.errors.append(str(error))
    _judge_near_copies(findings, examined)
    _judge_classes(findings)
    return findings


def _judge_copies(findings: Findings, contents: dict[str, int]) -> None:
    findings.splits, copies, moved = with_copies_together(findings.splits, contents)
    if moved:
        findings.warnings.append(f"copies lie in train and val as drawn; a training moves {counted(moved, 'image')}")
    findings.copies = copies
    across = [group for group in copies if group.across]
    if across:
        findings.errors.append(f"{describe_across(across)}; remove one of each:\n{list_lines(across, 5)}")
    conflicts = [group for group in copies if group.conflicting]
    if conflicts:
        findings.errors.append(
            f"{counted(len(conflicts), 'image')} with more than one label; keep the right one:\n"
            f"{list_lines(conflicts, 5)}"
        )
    within = [group for group in copies if not group.across and not group.conflicting]
    if within:
        extra = sum(len(group.places) - 1 for group in within)
        findings.warnings.append(
            f"{counted(extra, 'superfluous copy', 'superfluous copies')}:\n{list_lines(within, 5)}"
        )


def _judge_near_copies(findings: Findings, examined: Examined) -> None:
    """Find pairs that look alike; of exact copies only the first is compared."""
    splits = findings.splits
    split_of = {path: split.name for split in splits.parts for path in split.paths}
    first_of: dict[int, str] = {}
    for path in split_of:
        first_of.setdefault(examined.contents[path], path)
    paths = list(first_of.values())
    if not paths:
        return
    small = findings.stats.thumbnails([examined.stats[path] for path in paths], findings.statistics)
    flat = np.ptp(small.reshape(len(small), -1).astype(np.int16), axis=1) < _FLAT
    pairs = find_near(np.stack([perceptual_hash(one) for one in small]), small, skip=flat)
    findings.near = [(paths[i], paths[j]) for i, j in pairs]
    if findings.near:
        across = sum(split_of[one] != split_of[other] for one, other in findings.near)
        listed = list_lines([f"{one!r} ~ {other!r}" for one, other in findings.near])
        findings.warnings.append(
            f"{counted(len(findings.near), 'pair')} of images look alike, {across} of them across splits; they "
            f"may be copies that were compressed or resized\n{listed}"
        )


def _judge_classes(findings: Findings) -> None:
    splits, numbers = findings.splits, findings.statistics
    counts = dict(zip(splits.class_names, splits.train.class_counts(), strict=True))
    for what, split in (("train", splits.train), ("val", splits.val)):
        absent = split.absent_classes()
        if absent:
            (findings.errors if what == "train" or not len(split) else findings.warnings).append(
                f"{what} has no readable image of {quote_some(absent)}"
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
        findings.warnings.append(f"train has fewer than {_FEW} images of {quote_some(few)}")
    if numbers is not None and 0 < numbers.grey < len(splits.train):
        findings.warnings.append(f"{numbers.grey} of {len(splits.train)} train images are grey, the others in colour")


def report(findings: Findings) -> str:
    """The findings as text for a person."""
    splits, numbers = findings.splits, findings.statistics
    parts = [split.name for split in splits.parts]
    rows = [(one_line(str(name)), *counts) for name, *counts in _class_table(splits)]
    lines = [f"data: {splits.description}", "", text_table(("class", *parts), rows)]
    if numbers is not None:
        sizes = [f"{w} x {h} ({count})" for (w, h), count in numbers.sizes.items()]
        bands = zip(map(one_line, findings.stats.bands), numbers.mean, numbers.std, strict=True)
        digits = findings.stats.digits
        lines += [
            "",
            f"sizes in train: {', '.join(sizes[:5])}" + (f" and {len(sizes) - 5} others" if len(sizes) > 5 else ""),
            "mean and deviation in train: "
            + ", ".join(f"{name} {m:{digits}} ± {s:{digits}}" for name, m, s in bands),
        ]
    kinds = Counter({"error": len(findings.errors), "warning": len(findings.warnings)})
    lines += ["", *(f"error: {text}" for text in findings.errors), *(f"warning: {t}" for t in findings.warnings)]
    lines.append(", ".join(counted(kinds[kind], kind) for kind in ("error", "warning")))
    return "\n".join(lines)


def _class_table(splits: Splits) -> list[tuple[str | int, ...]]:
    """Name of every class and its images in train, val and, where there is one, test."""
    counts = zip(*(split.class_counts() for split in splits.parts), strict=True)
    return [(name, *row) for name, row in zip(splits.class_names, counts, strict=True)]
