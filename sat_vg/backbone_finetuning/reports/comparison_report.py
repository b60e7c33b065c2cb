"""The results of a comparison as ranked rows, and as text, Markdown and CSV."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sat_vg.backbone_finetuning.reports.seed_statistics import Difference, deviation, difference
from sat_vg.backbone_finetuning.reports.tables import csv_text, spreadsheet_cell, text_table
from sat_vg.backbone_finetuning.utils.printable import one_line

# Fields of rows that are left out of data where there is nothing in them.
OPTIONAL = ("maps", "top_5", "gpu_gib")
_TEXT_COLUMNS = (1, 2)


@dataclass(frozen=True)
class Row:
    """A backbone with a strategy, over its seeds."""

    backbone: str
    strategy: str
    image_size: int  # height and width in pixels
    seeds: tuple[int, ...]  # that have finished
    # shares of 1, one for each seed; the following are, too, one for each seed. Where an image can have several
    # classes: of the images all of whose classes are right.
    accuracies: tuple[float, ...]
    macro_f1: tuple[float, ...]  # shares of 1
    training_seconds: tuple[float, ...]  # of all epochs
    peak_gib: tuple[float | None, ...]  # peak memory of the training process; None where it is not known
    parameters: int  # of the network with its classifier
    flops: int  # of the forward pass of one image
    images_per_second: float  # of inference
    # mean average precisions, shares of 1, one for each seed, where an image can have several classes; else None
    maps: tuple[float, ...] | None = None
    # mean losses over the training images in the epochs of the best models; None where not known
    train_losses: tuple[float | None, ...] = ()
    # losses of the best models on the validation images; None where not known
    val_losses: tuple[float | None, ...] = ()
    # shares of images whose class is among the five most likely ones, one for each seed; None where that is not known
    top_5: tuple[float, ...] | None = None
    # peak memory of the tensors on the GPU, one for each seed; None where that is not known
    gpu_gib: tuple[float, ...] | None = None

    @property
    def name(self) -> str:
        """Backbone and strategy."""
        return f"{self.backbone} {self.strategy}"

    @property
    def measure(self) -> str:
        """What it is ranked by: accuracy, or mAP where an image can have several classes."""
        return "accuracy" if self.maps is None else "mAP"

    @property
    def scores(self) -> tuple[float, ...]:
        """Its value for each seed, a share of 1."""
        return self.accuracies if self.maps is None else self.maps

    @property
    def score(self) -> float:
        """The mean of ``scores``."""
        return statistics.fmean(self.scores)

    @property
    def seconds(self) -> float:
        """Mean training seconds."""
        return statistics.fmean(self.training_seconds)

    @property
    def train_loss(self) -> float | None:
        """The mean of ``train_losses``; None where one is not known."""
        return _of_known(statistics.fmean, self.train_losses)

    @property
    def val_loss(self) -> float | None:
        """The mean of ``val_losses``; None where one is not known."""
        return _of_known(statistics.fmean, self.val_losses)

    @property
    def gap(self) -> float | None:
        """``val_loss - train_loss``."""
        return None if self.train_loss is None or self.val_loss is None else self.val_loss - self.train_loss

    @property
    def memory(self) -> float | None:
        """The largest peak of all seeds, in GiB; None where one is not known."""
        return _of_known(max, self.peak_gib)


def _of_known(what: Callable[[list[float]], float], values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return what(known) if known and len(known) == len(values) else None


@dataclass(frozen=True)
class Failure:
    """A cell that has no result."""

    cell: str  # its name
    reason: str  # the last line of its error
    folder: str  # where the whole of what it printed lies


@dataclass(frozen=True)
class Limits:
    """Limits on the costs of what is recommended."""

    max_params: int | None = None  # maximum number of parameters
    min_images_per_second: float | None = None  # minimum speed of inference

    def __str__(self) -> str:
        parts = []
        if self.max_params is not None:
            parts.append(f"at most {self.max_params / 1e6:g} M parameters")
        if self.min_images_per_second is not None:
            parts.append(f"at least {self.min_images_per_second:g} images/s")
        return " and ".join(parts)

    def allow(self, row: Row) -> bool:
        """Whether a row is within them."""
        is_small = self.max_params is None or row.parameters <= self.max_params
        return is_small and row.images_per_second >= (self.min_images_per_second or 0)


@dataclass(frozen=True)
class Comparison:
    """The contents of the report."""

    rows: tuple[Row, ...]  # best first; see ``ranked``
    val_images: int  # number of validation images
    limits: Limits = Limits()  # on the costs of what is recommended
    notes: tuple[str, ...] = ()  # on the method, a sentence or two each
    failures: tuple[Failure, ...] = ()  # cells without a result
    command: str = ""  # repeats the comparison
    settings: tuple[tuple[str, str], ...] = ()  # name and value of the settings that are not at their defaults
    subtitle: str = ""  # backbones, strategies, seeds and data in a line
    # name of each cell, and path of its evaluation page relative to the results
    reports: tuple[tuple[str, str], ...] = ()

    @property
    def recommended(self) -> Row | None:
        """The best row within the limits."""
        return next(filter(self.limits.allow, self.rows), None)

    @property
    def recommendation(self) -> str:
        """The same in a sentence."""
        best, count = self.recommended, sum(map(self.limits.allow, self.rows))
        if best is None:
            return f"Nothing is recommended: no backbone has {self.limits}."
        among = f"the only one with {self.limits}" if str(self.limits) else "the only one trained"
        if count > 1:
            among = f"the highest of {count}{f' with {self.limits}' if str(self.limits) else ''}"
        unsure = " With one seed, the difference may be noise." if count > 1 and len(best.scores) == 1 else ""
        return f"Recommended: {best.name}, {spread(best.scores, 100)} % validation {self.measure}, {among}.{unsure}"

    @property
    def measure(self) -> str:
        """The measure of all rows, which are of the same images."""
        return self.rows[0].measure if self.rows else "accuracy"

    @property
    def grain(self) -> float:
        """The share of one image in the accuracy, and on average in the mAP."""
        return 1 / max(self.val_images, 1)

    def has(self, field: str) -> bool:
        """Whether a row has such numbers."""
        return any(getattr(row, field) is not None for row in self.rows)

    def behind_best(self, row: Row) -> Difference:
        """The difference between a row and the first, as a share of 1."""
        return difference(row.scores, self.rows[0].scores, self.grain)

    def within_noise_of(self, place: int) -> list[int] | None:
        """Ranks (from 1) of the rows whose difference to the one at ``place`` (from 0) is within noise.

        None where it is unknown, since one of them has a single seed.
        """
        row = self.rows[place]
        others = [difference(row.scores, other.scores, self.grain).is_noise for other in self.rows]
        if len(row.scores) < 2 or all(flag is None for i, flag in enumerate(others) if i != place):
            return None
        return [number for number, flag in enumerate(others, start=1) if flag and number != place + 1]


def ranked(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Best first; of equal rows the one with fewer FLOPs, then the one that trained faster."""
    return tuple(sorted(rows, key=lambda row: (-row.score, row.flops, row.seconds, row.name)))


def spread(values: Sequence[float], scale: float = 1.0, digits: int = 2) -> str:
    """``mean ± standard deviation``; the mean alone of a single value."""
    mean, std = scale * statistics.fmean(values), deviation(values)
    return f"{mean:.{digits}f}" if std is None else f"{mean:.{digits}f} ± {scale * std:.{digits}f}"


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    shown = f"{100 * value:+.2f}".replace("-", "−")
    return "0.00" if shown in ("+0.00", "−0.00") else shown


def table_of(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the table, as texts."""
    rows = [_cells_of(comparison, place, row) for place, row in enumerate(comparison.rows)]
    return list(rows[0]), [list(row.values()) for row in rows]


def _cells_of(comparison: Comparison, place: int, row: Row) -> dict[str, str]:
    same = comparison.within_noise_of(place)
    noise = "unknown" if same is None else (", ".join(map(str, same)) or "none")
    return {
        "rank": str(place + 1),
        "backbone": one_line(row.backbone),
        "strategy": one_line(row.strategy),
        "seeds": str(len(row.seeds)),
        f"{comparison.measure}, %": spread(row.scores, 100),
        "to the best": points(comparison.behind_best(row).value) if place else "–",
        "within noise of": "–" if len(comparison.rows) == 1 else noise,
        "macro F1, %": spread(row.macro_f1, 100),
        **({"top 5, %": spread(row.top_5, 100) if row.top_5 else "–"} if comparison.has("top_5") else {}),
        "train loss": "–" if row.train_loss is None else f"{row.train_loss:.3f}",
        "val loss": "–" if row.val_loss is None else f"{row.val_loss:.3f}",
        "gap": "–" if row.gap is None else f"{row.gap:+.3f}".replace("-", "−"),
        "M params": f"{row.parameters / 1e6:.2f}",
        "GFLOPs": f"{row.flops / 1e9:.3g}",
        "images/s": f"{row.images_per_second:.0f}",
        "training, s": spread(row.training_seconds, digits=1),
        "peak GiB": "unknown" if row.memory is None else f"{row.memory:.2f}",
        **({"GPU GiB": f"{max(row.gpu_gib):.2f}" if row.gpu_gib else "–"} if comparison.has("gpu_gib") else {}),
    }


def as_text(comparison: Comparison) -> str:
    """The table for the terminal."""
    return text_table(*table_of(comparison), left=_TEXT_COLUMNS)


def as_markdown(comparison: Comparison, chart: str = "") -> str:
    """The report as Markdown; ``chart`` is the file name of the chart, empty where there is none."""
    headings, rows = table_of(comparison)
    lines = ["# Comparison of backbones", "", *([markdown(comparison.subtitle), ""] if comparison.subtitle else [])]
    lines += [markdown(comparison.recommendation), ""]
    lines += [f"| {' | '.join(headings)} |"]
    lines += ["|" + "|".join("---" if i in _TEXT_COLUMNS else "---:" for i in range(len(headings))) + "|"]
    lines += [f"| {' | '.join(map(markdown, row))} |" for row in rows]
    lines += ["", *(f"{markdown(note)}\n" for note in comparison.notes)]
    if comparison.failures:
        lines += ["## Failures", ""]
        lines += [f"- {markdown(one.cell)}: {markdown(one.reason)}" for one in comparison.failures] + [""]
    if chart:
        lines += [f"![validation {comparison.measure} and costs]({chart})", ""]
    if comparison.command:
        lines += ["    " + one_line(comparison.command), ""]  # an indented block: no fence to break out of
    return "\n".join(lines).rstrip() + "\n"


def markdown(text: str) -> str:
    """A text with the syntax of Markdown and HTML escaped."""
    shown = one_line(text)
    for character in "\\`*_[]|#":
        shown = shown.replace(character, "\\" + character)
    return shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def as_csv(comparison: Comparison) -> str:
    """One line per row, each number in a column of its own; shares of 1, seconds, GiB; empty where unknown."""
    lines = [_plain_row(comparison, place, row) for place, row in enumerate(comparison.rows)]
    return csv_text(list(lines[0]), (list(line.values()) for line in lines))


def _plain_row(comparison: Comparison, place: int, row: Row) -> dict[str, object]:
    behind, same = comparison.behind_best(row), comparison.within_noise_of(place)
    maps = {} if row.maps is None else {"map_mean": row.score, "map_std": deviation(row.maps)}
    numbers: dict[str, object] = {
        "rank": place + 1,
        "backbone": spreadsheet_cell(row.backbone),
        "strategy": spreadsheet_cell(row.strategy),
        "image_size": row.image_size,
        "seeds": " ".join(map(str, row.seeds)),
        **maps,
        "accuracy_mean": statistics.fmean(row.accuracies),
        "accuracy_std": deviation(row.accuracies),
        "to_best": behind.value if place else 0.0,
        "to_best_low": behind.low if place else None,
        "to_best_high": behind.high if place else None,
        "within_noise_of": "unknown" if same is None else " ".join(map(str, same)),
        "macro_f1_mean": statistics.fmean(row.macro_f1),
        "macro_f1_std": deviation(row.macro_f1),
        "train_loss_mean": row.train_loss,
        "val_loss_mean": row.val_loss,
        "gap": row.gap,
        "parameters": row.parameters,
        "flops": row.flops,
        "images_per_second": row.images_per_second,
        "training_seconds_mean": row.seconds,
        "training_seconds_std": deviation(row.training_seconds),
        "peak_memory_gib": row.memory,
    }
    if comparison.has("top_5"):
        numbers["top_5_mean"] = statistics.fmean(row.top_5) if row.top_5 else None
        numbers["top_5_std"] = deviation(row.top_5) if row.top_5 else None
    if comparison.has("gpu_gib"):
        numbers["gpu_memory_gib"] = max(row.gpu_gib) if row.gpu_gib else None
    return numbers
