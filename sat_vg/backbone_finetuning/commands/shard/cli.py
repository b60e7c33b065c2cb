"""``sat-vg shard DATA --out OUT``: write images into tar files to train from."""

from sat_vg.backbone_finetuning.commands.command_line import main_of

_DESCRIPTION = """\
Write a data set into WebDataset tar files (shards) and an index of them, shards.json. A training takes their folder
in place of DATA. Few large files copy and stream well; the images' bytes stay as they are.

  write shards                 %(prog)s DATA --out OUT
  index tar files of others    %(prog)s --index DIR
  check that all are whole     %(prog)s --check DIR

DATA is what a training takes: class folders, train/ and val/ with class folders, or a .csv table. Stopped or killed,
the same command goes on where it was. Writing needs pip install 'sat_vg[webdataset]'."""
main = main_of(
    "shard",
    "ShardOptions",
    "shard",
    _DESCRIPTION,
    {"data": "DATA"},
    renamed={"output_dir": "out"},
    usage="%(prog)s (DATA --out OUT | --index DIR | --check DIR) [--OPTION VALUE ...]",
)
