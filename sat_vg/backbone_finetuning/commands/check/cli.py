"""``sat-vg check DATA``: report what is wrong with a data set before anything is trained on it."""

from sat_vg.backbone_finetuning.configs.option_parser import parse_options
from sat_vg.backbone_finetuning.utils.exit_codes import run_command

_DESCRIPTION = """\
Read every image of a data set and report what a training would stumble over: images that cannot be read, the same
image in train and val or under two labels, near copies, classes out of balance, odd sizes. Nothing is changed.

  class folders      %(prog)s DIR
  a table            %(prog)s images.csv
  a known set        %(prog)s --dataset eurosat
  GeoTIFFs           %(prog)s DIR --bands red=4,green=3,blue=2,nir=8

Exit codes: 0 clean, or warnings only; 2 errors."""


def main(arguments: list[str] | None = None, prog: str = "sat-vg check") -> int:
    """Run the command; returns its exit code."""

    def action() -> None:
        # Imported only now: an error in the settings file, which users edit, becomes a message.
        from sat_vg.backbone_finetuning.commands.check.options import CheckOptions

        options = parse_options(CheckOptions, arguments, prog, _DESCRIPTION, {"data": "DATA"})
        # Imported only now: torch takes seconds, and --help or a mistyped flag should be answered at once.
        from sat_vg.backbone_finetuning.commands.check.run import check

        check(options)

    return run_command(action)
