"""``sat-vg compare DATA``: train and rank backbones x strategies x seeds."""

import sys

from sat_vg.backbone_finetuning.configs.option_parser import parse_options
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.exit_codes import run_command

_DESCRIPTION = """\
Train every backbone with every strategy and every seed on one data set, and compare accuracy with its standard
deviation, parameters, FLOPs, speed, training time and memory.

  by options   %(prog)s DATA --backbones resnet18,mobilenet_v2 --strategies linear_probe,full --seeds 0,1 \\
                 --out OUT -- --num_epochs 5 --image_size 128
  a recipe     %(prog)s DATA --recipe FILE.yaml --out OUT
  look first   add --dry_run true before the --

Options behind -- go to every training (sat-vg train --help). Each training is a process of its own with its files in
OUT/cells. Stopped, killed, or Ctrl-C? The same command goes on; finished cells are not trained again. Results:
OUT/comparison.html, .md, .csv, .json, a chart, and OUT/tensorboard.
Exit codes: 0 done, 1 a training failed (the others are compared), 2 a setting or an input is wrong, 130 stopped by
Ctrl-C, 75 by SIGTERM or SIGUSR1."""


def main(arguments: list[str] | None = None, prog: str = "sat-vg compare") -> int:
    """Run the command; returns its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    dashes = given.index("--") if "--" in given else len(given)
    own, flags = given[:dashes], given[dashes + 1 :]

    def action() -> None:
        # Imported only now: an error in the settings file, which users edit, becomes a message.
        from sat_vg.backbone_finetuning.commands.compare.options import CompareOptions
        from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig

        names = [word[2:].partition("=")[0] for word in own if word.startswith("--")]
        behind = [name for name in names if name in {*FinetuneConfig.field_names()} - {"dataset_path", "weights"}]
        if behind:
            raise ConfigError(f"--{behind[0]} is an option of the training: put it behind -- at the end, as in "
                              f"{prog} DATA … -- --{behind[0]} VALUE")  # fmt: skip
        usage = "%(prog)s [DATA] [--OPTION VALUE ...] [-- --TRAINING_OPTION VALUE ...]"
        options = parse_options(
            CompareOptions, own, prog, _DESCRIPTION, {"data": "DATA"}, {"dataset_path": "data"}, usage
        )
        # Imported only now: torch takes seconds, and --help or a mistyped flag should be answered at once.
        from sat_vg.backbone_finetuning.commands.compare.run import compare

        compare(options, flags)

    return run_command(action)
