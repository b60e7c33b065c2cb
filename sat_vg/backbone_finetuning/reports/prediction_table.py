"""The predictions of single images as a table that spreadsheets can open."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sat_vg.backbone_finetuning.reports.tables import spreadsheet_cell


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image.

    Attributes:
        path: of the image, relative to the data folder.
        label: the true class.
        classes: the most likely ones, the likeliest first; up to five.
        probabilities: theirs, 0 to 1.
    """

    path: str
    label: int
    classes: list[int]
    probabilities: list[float]

    def named(self, class_names: Sequence[str]) -> dict[str, Any]:
        """The prediction with names, as plain data."""
        return {
            "path": self.path,
            "true": class_names[self.label],
            "predicted": class_names[self.classes[0]],
            "probability": self.probabilities[0],
        }


@dataclass(frozen=True)
class SetPrediction:
    """What a model says of one image that can have several classes.

    Attributes:
        path: of the image, relative to the data folder.
        has: of each class, whether the image has it.
        given: of each class, whether the image is given it.
        probabilities: of each class, 0 to 1.
        loss: of the image.
    """

    path: str
    has: Sequence[bool]
    given: Sequence[bool]
    probabilities: Sequence[float]
    loss: float

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


def set_predictions_csv(predictions: Sequence[SetPrediction], class_names: Sequence[str]) -> str:
    """A line for each image: path, classes with | between, whether all are right, loss, and every probability.

    Cells are written as in ``predictions_csv``.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["path", "true", "predicted", "correct", "loss", *map(spreadsheet_cell, class_names)])
    for one in predictions:
        named = one.named(class_names)
        sets = [spreadsheet_cell("|".join(named[what])) for what in ("true", "predicted")]
        correct = str(list(one.has) == list(one.given)).lower()
        shares = [f"{share:.6f}" for share in one.probabilities]
        writer.writerow([spreadsheet_cell(one.path), *sets, correct, f"{one.loss:.6f}", *shares])
    return file.getvalue()


def predictions_csv(predictions: Sequence[Prediction], class_names: Sequence[str]) -> str:
    """A line for each image: path, classes, probabilities, and whether they are right.

    Cells that a spreadsheet would take for a formula get an apostrophe before them; control characters are escaped.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    most = len(predictions[0].classes)
    others = [f"{what}_{rank}" for rank in range(2, most + 1) for what in ("class", "probability")]
    writer.writerow(["path", "true", "predicted", "probability", "correct", "in_top_5", *others])
    names = [spreadsheet_cell(name) for name in class_names]
    for one in predictions:
        ranked = [f"{share:.6f}" for share in one.probabilities]
        further = [
            cell for pair in zip(one.classes[1:], ranked[1:], strict=True) for cell in (names[pair[0]], pair[1])
        ]
        correct, in_top_5 = (str(found).lower() for found in (one.classes[0] == one.label, one.label in one.classes))
        first = [spreadsheet_cell(one.path), names[one.label], names[one.classes[0]], ranked[0], correct, in_top_5]
        writer.writerow([*first, *further])
    return file.getvalue()
