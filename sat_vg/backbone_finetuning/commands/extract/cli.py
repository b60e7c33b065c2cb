"""The extraction command: ``sat-vg extract CHECKPOINT IMAGES`` writes what a best_model.pt makes of images."""

import argparse
import sys

from sat_vg.backbone_finetuning.utils.exit_codes import run_command

_DESCRIPTION = """\
Write the feature vectors of images, or feature maps, into one file.

  a vector per image         %(prog)s best_model.pt DIR --out features.npz
  maps of two stages         %(prog)s best_model.pt DIR --out maps.safetensors --stages layer3,layer4
  images of a list           %(prog)s best_model.pt images.csv --out features.parquet

IMAGES is a folder, searched at any depth; a list (.txt: a path a line; .csv: a column path and perhaps label); a
glob in quotes; or one image. Images in class folders are labelled by them. Stopped or killed, the same command goes
on where it was; the file appears once it is complete."""


def main(arguments: list[str] | None = None, prog: str = "sat-vg extract") -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog=prog, description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a best_model.pt")
    parser.add_argument("images", metavar="IMAGES", help="folder, list, glob or image")
    parser.add_argument(
        "--out", default="features.npz", help=".npz, .safetensors or .parquet file; default: %(default)s"
    )
    parser.add_argument("--stages", help="maps of these stages, such as layer3,layer4; unset: the pooled vectors")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="default: %(default)s")
    parser.add_argument("--batch_size", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps; default: %(default)s")
    parser.add_argument(
        "--mixed_precision",
        action="store_true",
        help="compute in bfloat16 or float16 where the device is quick at it",
    )
    parser.add_argument(
        "--on_bad_image",
        choices=("error", "skip"),
        default="error",
        help="stop at an image that cannot be read, or leave it out; default: %(default)s",
    )
    parser.add_argument("--allow_outside", action="store_true", help="a list may name files outside its own folder")
    parser.add_argument(
        "--label_separator",
        metavar="TEXT",
        default="|",
        help="what stands between the classes of an image in a table's column labels; default: %(default)s",
    )
    parser.add_argument(
        "--knn",
        choices=("auto", "yes", "no"),
        default="auto",
        help="the nearest neighbours' accuracy on labelled vectors; auto: of up to 50 000; default: %(default)s",
    )
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)

    def action() -> None:
        # Imported only now: torch takes seconds, and --help or a mistyped flag should be answered at once.
        from sat_vg.backbone_finetuning.commands.extract.run import Request, extract_features

        extract_features(Request(**vars(options)))

    return run_command(action)
