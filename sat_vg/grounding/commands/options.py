"""The options of ``sat-vg ground evaluate`` and ``sat-vg ground predict``."""

from dataclasses import dataclass

from sat_vg.backbone_finetuning.configs.ranges import PositiveInt
from sat_vg.grounding.configs.choices import BoxFormat, OnBadRecord, Split


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Options of ``sat-vg ground evaluate``."""

    checkpoint: str
    """A best_model.pt of the grounding."""
    data: str | None = None
    """The data set, as for the training. Unset: the built-in drawn tiles."""
    split: Split = "test"
    """Which part of it."""
    out: str = "grounding_evaluation"
    """Folder of metrics.json, predictions.json and report.html."""
    box_format: BoxFormat | None = None
    """What the four numbers of a box are, where a file does not say it."""
    on_bad_record: OnBadRecord = "error"
    """What to do with a record that cannot be used: stop, or leave it out and list it."""
    batch_size: PositiveInt = 64
    """Phrases at once."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Options of ``sat-vg ground predict``."""

    checkpoint: str
    """A best_model.pt of the grounding."""
    image: str
    """The image file."""
    phrase: str
    """What to look for, in quotes."""
    out: str | None = None
    """A .png file: the image with the box. Unset: none."""
    json: bool = False
    """Print one JSON object."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
