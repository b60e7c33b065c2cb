"""The prediction command: ``sat-vg predict CHECKPOINT IMAGE …`` tells what a best_model.pt takes images for."""

import argparse
import sys

from sat_vg.backbone_finetuning.utils.exit_codes import run_command

_DESCRIPTION = """\
Classes and probabilities of images by a best_model.pt.

  some images              %(prog)s best_model.pt a.jpg b.png
  folders, at any depth    %(prog)s best_model.pt DIR --top 1
  for another program      find DIR -name '*.png' | %(prog)s best_model.pt - --json
  what it looked at        %(prog)s best_model.pt a.jpg --overlays looked_at

An IMAGE is a file, a folder, a glob in quotes, or - for paths on standard input, one a line, which are answered as
they come. An image that cannot be read is reported, the others go on, and the exit code at the end is 2."""


def main(arguments: list[str] | None = None, prog: str = "sat-vg predict") -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog=prog, description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a best_model.pt")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="file, folder, glob, or - for standard input")
    parser.add_argument(
        "--top",
        type=int,
        help="classes for each image; unset: 5, or where an image can have several, all that are likelier than not",
    )
    parser.add_argument("--json", action="store_true", dest="as_json", help="a JSON object a line instead of a table")
    parser.add_argument(
        "--overlays", metavar="DIR", help="write a PNG for each image: where the class was seen in it"
    )
    parser.add_argument("--batch_size", type=int, default=16, help="images at once; default: %(default)s")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps; default: %(default)s")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)

    def action() -> None:
        # Imported only now: torch takes seconds, and --help or a mistyped flag should be answered at once.
        from sat_vg.backbone_finetuning.commands.predict.run import Request, predict_images

        predict_images(Request(**vars(options)))

    return run_command(action)
