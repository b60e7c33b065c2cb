"""``sat-vg compare DATA``: train and rank backbones x strategies x seeds."""

import sys
from dataclasses import dataclass

from sat_vg.backbone_finetuning.commands.command_line import function_of
from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.configs.option_parser import parse_options
from sat_vg.backbone_finetuning.configs.ranges import PositiveFloat
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


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Options of ``sat-vg compare``; lists that are unset are taken from the recipe."""

    data: str | None = None
    """Images, as for the training: class folders, or a .csv table. Unset: those of the recipe or of the options
    behind --."""
    recipe: str | None = None
    """YAML file with backbones, strategies, seeds, dataset_path, settings, weights; options outrank it."""
    backbones: tuple[str, ...] | None = None
    """Names, such as resnet18,vit_b_16."""
    strategies: tuple[str, ...] | None = None
    """Names, such as linear_probe,full."""
    seeds: tuple[int, ...] | None = None
    """Whole numbers, such as 0,1."""
    weights: tuple[str, ...] | None = None
    """Files to start from, such as resnet18=resnet18.pth,resnet50=resnet50.pth. A backbone without one starts from
    torchvision's best weights."""
    out: str = "comparison"
    """Folder of the cells and of the results."""
    max_params: str | None = None
    """Maximum number of parameters of the recommended backbone, such as 5M, 500k or 2.5e6."""
    min_images_per_second: PositiveFloat | None = None
    """Minimum speed of the recommended backbone, as measured here."""
    anew: bool = False
    """Move cells that had other settings aside and train them again."""
    dry_run: bool = False
    """List the cells and which are done; train nothing."""


def main(arguments: list[str] | None = None, prog: str = "sat-vg compare") -> int:
    """Run the command; returns its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    dashes = given.index("--") if "--" in given else len(given)
    own, flags = given[:dashes], given[dashes + 1 :]

    def action() -> None:
        names = [word[2:].partition("=")[0] for word in own if word.startswith("--")]
        behind = [name for name in names if name in {*FinetuneConfig.field_names()} - {"dataset_path", "weights"}]
        if behind:
            raise ConfigError(f"--{behind[0]} is an option of the training: put it behind -- at the end, as in "
                              f"{prog} DATA … -- --{behind[0]} VALUE")  # fmt: skip
        usage = "%(prog)s [DATA] [--OPTION VALUE ...] [-- --TRAINING_OPTION VALUE ...]"
        options = parse_options(
            CompareOptions, own, prog, _DESCRIPTION, {"data": "DATA"}, {"dataset_path": "data"}, usage
        )
        function_of(CompareOptions, "compare")(options, flags)

    return run_command(action)
