"""The export command: ``sat-vg export CHECKPOINT --format F --out PATH`` writes a model for other programs."""

import argparse
import sys

from sat_vg.backbone_finetuning.models.exports import FORMATS, PARTS
from sat_vg.backbone_finetuning.utils.exit_codes import run_command

_DESCRIPTION = """\
Write a best_model.pt for other programs, read the file back, and compare it with the model.

  state dict for torchvision.models    %(prog)s best_model.pt --format torchvision --out weights.pth
  checkpoint for DETR or TransVG       %(prog)s best_model.pt --format detr --out detr.pth
  weights that can hold no code        %(prog)s best_model.pt --format safetensors --out weights.safetensors
  feature maps in ONNX Runtime         %(prog)s best_model.pt --format onnx --part extractor --out maps.onnx
  program of torch.export              %(prog)s best_model.pt --format pt2 --out program.pt2
  is this file that model?             %(prog)s best_model.pt --verify maps.onnx

Beside the file lie PATH.card.json and PATH.card.md: what it takes and gives, and what it was made of. A file whose
numbers differ from the model's by more than the tolerance is not left behind."""


def main(arguments: list[str] | None = None, prog: str = "sat-vg export") -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog=prog, description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a best_model.pt")
    parser.add_argument("--format", choices=tuple(FORMATS), help="what to write")
    parser.add_argument("--out", metavar="PATH", help="file to write")
    parser.add_argument(
        "--verify", metavar="FILE", help="compare an earlier export with CHECKPOINT; nothing is written"
    )
    parser.add_argument("--part", choices=PARTS, help="onnx, pt2: what is computed; default: classifier")
    parser.add_argument("--with_normalisation", action="store_true", help="onnx, pt2: take uint8 images")
    head = parser.add_mutually_exclusive_group()
    head.add_argument(
        "--with_head", action="store_true", default=None, help="torchvision: write the classifier too (the default)"
    )
    head.add_argument(
        "--without_head", dest="with_head", action="store_false", help="torchvision: leave the classifier out"
    )
    parser.add_argument(
        "--fixed_size",
        type=int,
        metavar="PIXELS",
        help="onnx, pt2: the only height and width; unset: any, where the backbone allows it",
    )
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest difference; default: %(default)s")
    parser.add_argument("--license", metavar="TEXT", help="for the card, such as CC-BY-4.0")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)

    def action() -> None:
        # Imported only now: torch takes seconds, and --help or a mistyped flag should be answered at once.
        from sat_vg.backbone_finetuning.commands.export.run import Request, run_request

        run_request(Request(**vars(options)))

    return run_command(action)
