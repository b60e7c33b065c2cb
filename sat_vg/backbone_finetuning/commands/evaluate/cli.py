"""The evaluation command: ``sat-vg evaluate CHECKPOINT [DATA]`` tells how well a best_model.pt does on images."""

import argparse
import sys

from sat_vg.backbone_finetuning.utils.exit_codes import run_command

_DESCRIPTION = """\
How well a best_model.pt does on the images of one split: accuracy with its uncertainty, precision, recall and F1 by
class, calibration, and the worst mistakes with what the model looked at. The folder that is written holds report.html
to be read, and the same as JSON, CSV and PNG.

  what it was chosen by    %(prog)s checkpoints/finetune/best_model.pt
  other images             %(prog)s checkpoints/finetune/best_model.pt DIR --split test
  honest probabilities     %(prog)s checkpoints/finetune/best_model.pt --calibrate calibrated.pt

DATA is what training takes: DIR/CLASS/image.jpg or DIR/val/CLASS/image.jpg, or a .csv table. What was split by
seed in the training is split in the same way. The classes must be those of the model."""


def main(arguments: list[str] | None = None, prog: str = "sat-vg evaluate") -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog=prog, description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a best_model.pt")
    parser.add_argument("data", nargs="?", metavar="DATA", help="images; unset: those of the training")
    parser.add_argument("--split", choices=("val", "train", "test"), default="val", help="default: %(default)s")
    parser.add_argument("--output_dir", default="evaluation", help="default: %(default)s")
    parser.add_argument(
        "--calibrate",
        metavar="PATH",
        help="fit a temperature on this split and write a copy of the checkpoint with it to PATH, which may be "
        "CHECKPOINT itself",
    )
    parser.add_argument("--batch_size", type=int, help="images at once; unset: as in the training's validation")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps; default: %(default)s")
    parser.add_argument("--num_workers", type=int, help="processes that decode images; unset: chosen for the device")
    parser.add_argument(
        "--allow_outside",
        choices=("true", "false"),
        default="false",
        help="whether a table that is named here may name images outside its own folder; default: %(default)s",
    )
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)

    def action() -> None:
        # Imported only now: torch takes seconds, and --help or a mistyped flag should be answered at once.
        from sat_vg.backbone_finetuning.commands.evaluate.run import Request, evaluate_checkpoint

        evaluate_checkpoint(Request(**{**vars(options), "allow_outside": options.allow_outside == "true"}))

    return run_command(action)
