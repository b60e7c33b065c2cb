"""``sat-vg shard DATA --out OUT``: write images into tar files to train from."""

from sat_vg.backbone_finetuning.configs.option_parser import parse_options
from sat_vg.backbone_finetuning.utils.exit_codes import run_command

_DESCRIPTION = """\
Write a data set into WebDataset tar files (shards) and an index of them, shards.json. A training takes their folder
in place of DATA. Few large files copy and stream well; the images' bytes stay as they are.

  write shards                 %(prog)s DATA --out OUT
  index tar files of others    %(prog)s --index DIR
  check that all are whole     %(prog)s --check DIR

DATA is what a training takes: class folders, train/ and val/ with class folders, or a .csv table. Stopped or killed,
the same command goes on where it was. Writing needs pip install 'sat_vg[webdataset]'."""


def main(arguments: list[str] | None = None, prog: str = "sat-vg shard") -> int:
    """Run the command; returns its exit code."""

    def action() -> None:
        # Imported only now: an error in the settings file, which users edit, becomes a message.
        from sat_vg.backbone_finetuning.commands.shard.options import ShardOptions

        options = parse_options(
            ShardOptions,
            arguments,
            prog,
            _DESCRIPTION,
            positionals={"data": "DATA"},
            renamed={"output_dir": "out"},
            usage="%(prog)s (DATA --out OUT | --index DIR | --check DIR) [--OPTION VALUE ...]",
        )
        # Imported only now: torch takes seconds, and --help or a mistyped flag should be answered at once.
        from sat_vg.backbone_finetuning.commands.shard.run import shard

        shard(options)

    return run_command(action)
