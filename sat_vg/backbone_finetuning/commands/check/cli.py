"""The checking command: ``sat-vg check DIR`` tells what is wrong with a data set before anything is trained on it."""

import argparse
import sys

from sat_vg.backbone_finetuning.configs.band_choice import EXAMPLE, with_negative_numbers
from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.utils.exit_codes import run_command

_DESCRIPTION = """\
Read every image of a data set and tell what a training would stumble over: images that cannot be read, the same image
in train and val or under two labels, near copies, classes out of balance, odd sizes. Nothing is changed.

  class folders      %(prog)s DIR
  a table            %(prog)s images.csv
  a known set        %(prog)s --dataset eurosat
  GeoTIFFs           %(prog)s DIR --bands red=4,green=3,blue=2,nir=8

Exit codes: 0 clean, or warnings only; 2 errors."""


def main(arguments: list[str] | None = None, prog: str = "sat-vg check") -> int:
    """Run the command; returns its exit code."""
    defaults = FinetuneConfig()
    parser = argparse.ArgumentParser(
        prog=prog, description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "data",
        nargs="?",
        metavar="DATA",
        help="class folders, or train/ and val/ with class folders, or a .csv table; with --dataset the folder of a "
        "copy, or nothing",
    )
    parser.add_argument(
        "--dataset",
        metavar="NAME",
        help="a data set that torchvision reads, such as eurosat or cifar10. As for the training, what DATA (unset: "
        "the cache folder) lacks of it is downloaded",
    )
    parser.add_argument(
        "--bands",
        metavar="A,B",
        help=f"read GeoTIFFs, and these bands of them, as for the training, such as {EXAMPLE}; unset: 8-bit RGB",
    )
    parser.add_argument(
        "--nodata", type=float, help="as for the training: a value of these bands that stands for none"
    )
    parser.add_argument(
        "--rescale",
        choices=("none", "percentile"),
        default=defaults.rescale,
        help="as for the training: how 8-bit RGB is made of 16-bit images (%(default)s)",
    )
    parser.add_argument(
        "--allow_outside",
        choices=("true", "false"),
        default="false",
        help="whether a table may name images outside its own folder (%(default)s)",
    )
    same = {"train_split": str, "val_split": str, "val_fraction": float, "seed": int, "label_separator": str}
    for name, kind in same.items():
        default = getattr(defaults, name)
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"as for the training ({default})")
    parser.add_argument("--json", action="store_true", dest="as_json", help="one JSON object that leaves nothing out")
    options = parser.parse_args(with_negative_numbers(sys.argv[1:] if arguments is None else arguments))

    def action() -> None:
        # Imported only now: torch takes seconds, and --help or a mistyped flag should be answered at once.
        from sat_vg.backbone_finetuning.commands.check.run import Request, check

        check(Request(**{**vars(options), "allow_outside": options.allow_outside == "true"}))

    return run_command(action)
