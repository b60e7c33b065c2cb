"""The predictions of single images as a table that spreadsheets can open."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, compress
from typing import Any

from sat_vg.backbone_finetuning.reports.tables import csv_text, spreadsheet_cell


@dataclass(frozen=True)
class Prediction:
    """Prediction for one image."""

    path: str  # of the image, relative to the data folder
    label: int  # the true class
    classes: list[int]  # the most likely ones, the likeliest first; up to five
    probabilities: list[float]  # theirs, 0 to 1

    def named(self, class_names: Sequence[str]) -> dict[str, Any]:
        """The prediction with names, as plain data."""
        return {
            "path": self.path,
            "true": class_names[self.label],
            "predicted": class_names[self.classes[0]],
            "probability": self.probabilities[0],
        }

    def header(self, class_names: Sequence[str]) -> list[str]:
        """The first line of the table, which has columns for as many classes as this prediction."""
        others = [f"{what}_{rank}" for rank in range(2, len(self.classes) + 1) for what in ("class", "probability")]
        return ["path", "true", "predicted", "probability", "correct", "in_top_5", *others]

    def cells(self, class_names: Sequence[str]) -> list[str]:
        """Its line of the table."""
        names = [spreadsheet_cell(class_names[index]) for index in (self.label, *self.classes)]
        first, *others = zip(names[1:], (f"{share:.6f}" for share in self.probabilities), strict=True)
        checks = [str(self.label in classes).lower() for classes in (self.classes[:1], self.classes)]
        return [spreadsheet_cell(self.path), names[0], *first, *checks, *chain.from_iterable(others)]


@dataclass(frozen=True)
class SetPrediction:
    """Prediction for one image that can have several classes."""

    path: str  # of the image, relative to the data folder
    has: Sequence[bool]  # of each class, whether the image has it
    given: Sequence[bool]  # of each class, whether the image is given it
    probabilities: Sequence[float]  # of each class, 0 to 1
    loss: float  # of the image

    def named(self, class_names: Sequence[str]) -> dict[str, Any]:
        """The prediction with names, as plain data; wrong classes with their probability, the worst first."""
        rows = list(zip(class_names, self.has, self.given, self.probabilities, strict=True))
        missed = {name: share for name, has, given, share in rows if has and not given}
        added = {name: share for name, has, given, share in rows if given and not has}
        return {
            "path": self.path,
            "true": [name for name, has, _, _ in rows if has],
            "predicted": [name for name, _, given, _ in rows if given],
            "missed": dict(sorted(missed.items(), key=lambda entry: entry[1])),
            "added": dict(sorted(added.items(), key=lambda entry: -entry[1])),
            "loss": self.loss,
        }

    def header(self, class_names: Sequence[str]) -> list[str]:
        """The first line of the table."""
        return ["path", "true", "predicted", "correct", "loss", *map(spreadsheet_cell, class_names)]

    def cells(self, class_names: Sequence[str]) -> list[str]:
        """Its line of the table: classes with | between, whether all are right, loss, and every probability."""
        sets = [spreadsheet_cell("|".join(compress(class_names, chosen))) for chosen in (self.has, self.given)]
        shares = [f"{share:.6f}" for share in self.probabilities]
        correct = str(list(self.has) == list(self.given)).lower()
        return [spreadsheet_cell(self.path), *sets, correct, f"{self.loss:.6f}", *shares]


def predictions_csv(predictions: Sequence[Prediction | SetPrediction], class_names: Sequence[str]) -> str:
    """A line for each image: path, classes, probabilities, and whether they are right.

    Cells that a spreadsheet would take for a formula get an apostrophe before them; control characters are escaped.
    """
    return csv_text(predictions[0].header(class_names), (one.cells(class_names) for one in predictions))
