"""Reads metrics.jsonl; damaged lines are dropped."""

import math
from pathlib import Path
from typing import Any, NamedTuple

from sat_vg.backbone_finetuning.utils.json_reading import UnsoundJSONError, parse_json
from sat_vg.backbone_finetuning.utils.regular_files import read_bounded

METRICS = "metrics.jsonl"
_MOST_BYTES = 2**31
_TEXTS = ("phase", "event")
_OF_AN_EPOCH = ("epoch", "train_loss", "val_loss", "val_accuracy", "seconds")


class MetricLines(NamedTuple):
    """What a file holds.

    Attributes:
        lines: each sound line with its entry, in their order.
        dropped: numbers of the other lines, from 1.
        is_cut: whether the last line is the beginning of one, as a process that is killed leaves it.
    """

    lines: list[tuple[str, dict[str, Any]]]
    dropped: list[int]
    is_cut: bool

    @property
    def ended_epochs(self) -> list[dict[str, Any]]:
        """The entries that end epochs and have all their numbers."""
        needed = {*_OF_AN_EPOCH, *(["val_map"] if any("val_map" in entry for _, entry in self.lines) else [])}
        return [entry for _, entry in self.lines if needed <= entry.keys()]


def read_metric_lines(path: Path) -> MetricLines:
    """Read a file of such lines; a line counts as damaged where it is no object with the step and epoch of a run.

    Raises:
        OSError: the file cannot be read.
    """
    content = read_bounded(path, _MOST_BYTES)
    texts = content.decode("utf-8", errors="replace").split("\n")
    lines, dropped = [], []
    for number, text in enumerate(texts, start=1):
        entry = _entry_of(text)
        if entry is not None:
            lines.append((text, entry))
        elif text.strip():
            dropped.append(number)
    return MetricLines(lines, dropped, is_cut=texts[-1].startswith("{") and "}" not in texts[-1])


def _entry_of(text: str) -> dict[str, Any] | None:
    try:
        entry = parse_json(text)
    except UnsoundJSONError:
        return None
    if not isinstance(entry, dict):
        return None
    places = [entry.get(name) for name in ("epoch", "step")]
    values = [value for name, value in entry.items() if name not in _TEXTS]
    is_sound = (
        all(type(place) is int and 0 <= place < 2**63 for place in places)
        and all(isinstance(entry.get(name, ""), str) for name in _TEXTS)
        and all(value is None or (type(value) in (int, float) and math.isfinite(value)) for value in values)
        and not any(entry.get(name, 0) is None for name in _OF_AN_EPOCH)
    )
    return entry if is_sound else None
