"""``sat-vg check DATA``: report what is wrong with a data set before anything is trained on it."""

from sat_vg.backbone_finetuning.commands.command_line import main_of

_DESCRIPTION = """\
Read every image of a data set and report what a training would stumble over: images that cannot be read, the same
image in train and val or under two labels, near copies, classes out of balance, odd sizes. Nothing is changed.

  class folders      %(prog)s DIR
  a table            %(prog)s images.csv
  a known set        %(prog)s --dataset eurosat
  GeoTIFFs           %(prog)s DIR --bands red=4,green=3,blue=2,nir=8

Exit codes: 0 clean, or warnings only; 2 errors."""
main = main_of("check", "CheckOptions", "check", _DESCRIPTION, {"data": "DATA"})
