"""``sat-vg evaluate CHECKPOINT [DATA]``: measure a best_model.pt on labelled images."""

from sat_vg.backbone_finetuning.configs.option_parser import parse_options
from sat_vg.backbone_finetuning.utils.exit_codes import run_command

_DESCRIPTION = """\
Measure a best_model.pt on the images of one split: accuracy with its uncertainty, precision, recall and F1 by class,
calibration, and the worst mistakes with what the model looked at. The folder that is written holds report.html, and
the same as JSON, CSV and PNG.

  what it was chosen by    %(prog)s checkpoints/finetune/best_model.pt
  other images             %(prog)s checkpoints/finetune/best_model.pt DIR --split test
  honest probabilities     %(prog)s checkpoints/finetune/best_model.pt --calibrate calibrated.pt

DATA is what training takes: DIR/CLASS/image.jpg or DIR/val/CLASS/image.jpg, or a .csv table. What was split by
seed in the training is split in the same way. The classes must be those of the model."""


def main(arguments: list[str] | None = None, prog: str = "sat-vg evaluate") -> int:
    """Run the command; returns its exit code."""

    def action() -> None:
        from sat_vg.backbone_finetuning.commands.evaluate.options import EvaluateOptions

        options = parse_options(
            EvaluateOptions,
            arguments,
            prog,
            _DESCRIPTION,
            positionals={"checkpoint": "CHECKPOINT", "data": "DATA"},
            renamed={"output_dir": "out"},
        )
        # Imported only now: torch takes seconds, and --help or a mistyped flag should be answered at once.
        from sat_vg.backbone_finetuning.commands.evaluate.run import evaluate_checkpoint

        evaluate_checkpoint(options)

    return run_command(action)
