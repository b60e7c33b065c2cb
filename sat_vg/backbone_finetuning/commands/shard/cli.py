"""The shards command: ``sat-vg shard DATA --output_dir OUT`` writes images into tar files to train from."""

import argparse
import sys

from sat_vg.backbone_finetuning.utils.exit_codes import run_command

_DESCRIPTION = """\
Write a data set into WebDataset tar files (shards) and an index of them, shards.json. A training takes their folder
in place of DATA. Few large files copy and stream well; the images' bytes stay as they are.

  write shards                 %(prog)s DATA --output_dir OUT
  list tar files of others     %(prog)s --index DIR
  look whether all are whole   %(prog)s --check DIR

DATA is what a training takes: class folders, train/ and val/ with class folders, or a .csv table. Stopped or killed,
the same command goes on where it was. Writing needs pip install 'sat_vg[webdataset]'."""


def main(arguments: list[str] | None = None, prog: str = "sat-vg shard") -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog=prog,
        usage="%(prog)s (DATA --output_dir OUT | --index DIR | --check DIR) [--OPTION VALUE ...]",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("data", metavar="DATA", nargs="?", help="the images")
    what.add_argument("--index", metavar="DIR", help="write shards.json of the tar files in DIR")
    what.add_argument("--check", metavar="DIR", help="read all shards in DIR and compare them with their index")
    parser.add_argument("--output_dir", metavar="OUT", help="where shards are written")
    parser.add_argument("--images_per_shard", type=int, metavar="N", help="images in a shard, at the most")
    parser.add_argument(
        "--shard_mib", type=float, metavar="MIB", help="size of a shard, at the most; 256 if neither is given"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the shards' mixture and of val; default: %(default)s")
    parser.add_argument(
        "--val_fraction", type=float, default=0.2, help="as for the training, where DATA has no val; %(default)s"
    )
    parser.add_argument("--train_split", default="train", help="as for the training; default: %(default)s")
    parser.add_argument("--val_split", default="val", help="as for the training; default: %(default)s")
    parser.add_argument("--bands", help="as for the training: the images are GeoTIFFs")
    parser.add_argument(
        "--on_bad_image",
        choices=("error", "skip"),
        default="error",
        help="stop at an image that cannot be read, or leave it out; default: %(default)s",
    )
    parser.add_argument(
        "--max_bad_fraction", type=float, default=0.01, help="how many may be left out; default: %(default)s"
    )
    parser.add_argument(
        "--on_duplicates",
        choices=("error", "warn", "ignore"),
        default="error",
        help="as for the training; default: %(default)s",
    )
    parser.add_argument("--allow_outside", action="store_true", help="a table may name images outside its own folder")
    parser.add_argument(
        "--label_separator", metavar="TEXT", default="|", help="as for the training; default: %(default)s"
    )
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    if options.data is not None and options.output_dir is None:
        parser.error("DATA needs --output_dir OUT, the folder that shards are written to")

    def action() -> None:
        # Imported only now: torch takes seconds, and --help or a mistyped flag should be answered at once.
        from sat_vg.backbone_finetuning.commands.shard.run import (
            WritingRequest,
            check_shards,
            index_shards,
            write_shards,
        )

        if options.index is not None:
            index_shards(options.index)
        elif options.check is not None:
            check_shards(options.check)
        else:
            settings = {name: value for name, value in vars(options).items() if name not in ("index", "check")}
            write_shards(WritingRequest(**settings))

    return run_command(action)
