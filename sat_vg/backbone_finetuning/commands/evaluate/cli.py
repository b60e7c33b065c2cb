"""``sat-vg evaluate CHECKPOINT [DATA]``: measure a best_model.pt on labelled images."""

from dataclasses import dataclass
from typing import Annotated, Literal

from sat_vg.backbone_finetuning.commands.command_line import main_of
from sat_vg.backbone_finetuning.configs.choices import MOST_VIEWS
from sat_vg.backbone_finetuning.configs.ranges import PositiveInt, Range, WholeNumber

_DESCRIPTION = """\
Measure a best_model.pt on the images of one split: accuracy with its uncertainty, precision, recall and F1 by class,
calibration, and the worst mistakes with what the model looked at. The folder that is written holds report.html, and
the same as JSON, CSV and PNG.

  what it was chosen by    %(prog)s checkpoints/finetune/best_model.pt
  other images             %(prog)s checkpoints/finetune/best_model.pt DIR --split test
  honest probabilities     %(prog)s checkpoints/finetune/best_model.pt --calibrate calibrated.pt

DATA is what training takes: DIR/CLASS/image.jpg or DIR/val/CLASS/image.jpg, or a .csv table. What was split by
seed in the training is split in the same way. The classes must be those of the model."""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Options of ``sat-vg evaluate``."""

    checkpoint: str
    """A best_model.pt."""
    data: str | None = None
    """Images: class folders, or a .csv table. Unset: those of the training."""
    split: Literal["val", "train", "test"] = "val"
    """Which part of the images."""
    views: Annotated[int, Range(lowest=1, highest=MOST_VIEWS, example=MOST_VIEWS)] = 1
    """Average the probabilities over so many of each image's flips and quarter turns; 8: all of them. The network
    runs as often."""
    ensemble: tuple[str, ...] = ()
    """More best_model.pt of the same classes, whose probabilities are averaged with those of CHECKPOINT."""
    out: str = "evaluation"
    """Folder of report.html and the other results."""
    calibrate: str | None = None
    """Fit a temperature on this split and write a copy of the checkpoint with it to this path, which may be
    CHECKPOINT itself."""
    batch_size: PositiveInt | None = None
    """Images at once. Unset: as in the training's validation."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    num_workers: WholeNumber | None = None
    """Processes that decode images. Unset: chosen for the device."""
    allow_outside: bool = False
    """A table in DATA may name images outside its own folder."""


main = main_of(
    "evaluate",
    EvaluateOptions,
    "evaluate_checkpoint",
    _DESCRIPTION,
    {"checkpoint": "CHECKPOINT", "data": "DATA"},
    renamed={"output_dir": "out"},
)
