"""``sat-vg evaluate CHECKPOINT [DATA]``: measure a best_model.pt on labelled images."""

from sat_vg.backbone_finetuning.commands.command_line import main_of

_DESCRIPTION = """\
Measure a best_model.pt on the images of one split: accuracy with its uncertainty, precision, recall and F1 by class,
calibration, and the worst mistakes with what the model looked at. The folder that is written holds report.html, and
the same as JSON, CSV and PNG.

  what it was chosen by    %(prog)s checkpoints/finetune/best_model.pt
  other images             %(prog)s checkpoints/finetune/best_model.pt DIR --split test
  honest probabilities     %(prog)s checkpoints/finetune/best_model.pt --calibrate calibrated.pt

DATA is what training takes: DIR/CLASS/image.jpg or DIR/val/CLASS/image.jpg, or a .csv table. What was split by
seed in the training is split in the same way. The classes must be those of the model."""
main = main_of(
    "evaluate",
    "EvaluateOptions",
    "evaluate_checkpoint",
    _DESCRIPTION,
    {"checkpoint": "CHECKPOINT", "data": "DATA"},
    renamed={"output_dir": "out"},
)
