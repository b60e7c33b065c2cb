"""The comparison command: ``sat-vg compare`` trains and ranks backbones x strategies x seeds."""

import argparse
import sys
from collections.abc import Callable
from typing import Any

from sat_vg.backbone_finetuning.commands.compare.plan import (
    Request,
    parse_count,
    parse_names,
    parse_seeds,
    parse_weights,
)
from sat_vg.backbone_finetuning.utils.exit_codes import run_command

_DESCRIPTION = """\
Train every backbone with every strategy and every seed on one data set, and compare accuracy with its standard
deviation, parameters, FLOPs, speed, training time and memory.

  by flags     %(prog)s --backbones resnet18,mobilenet_v2 --strategies linear_probe,full --seeds 0,1 \\
                 --dataset_path DIR --out OUT -- --num_epochs 5 --image_size 128
  a recipe     %(prog)s --recipe FILE.yaml --dataset_path DIR --out OUT
  look first   add --dry_run before the --

Options after -- go to every training (python -m sat_vg.backbone_finetuning.train --help). Each training is a process
of its own with its files in OUT/cells. Stopped, killed, or Ctrl-C? The same command goes on; finished cells are not
trained again. Results: OUT/comparison.html, .md, .csv, .json, a chart, and OUT/tensorboard.
Exit codes: 0 done, 1 a training failed (the others are compared), 2 a setting or an input is wrong, 130 stopped by
Ctrl-C, 75 by SIGTERM or SIGUSR1."""


def main(arguments: list[str] | None = None, prog: str = "sat-vg compare") -> int:
    """Run the command; returns its exit code."""
    own, settings = _at_dashes(list(sys.argv[1:] if arguments is None else arguments))
    options = _build_parser(prog).parse_args(own)

    def action() -> None:
        # Imported only now: torch takes seconds, and --help or a mistyped flag should be answered at once.
        from sat_vg.backbone_finetuning.commands.compare.run import compare

        compare(Request(**vars(options), settings=tuple(settings)))

    return run_command(action)


def _at_dashes(arguments: list[str]) -> tuple[list[str], list[str]]:
    position = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:position], arguments[position + 1 :]


def _build_parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        usage="%(prog)s [--recipe FILE] [--FLAG VALUE ...] [-- --TRAINING_FIELD VALUE ...]",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--recipe", metavar="FILE", help="YAML with backbones, strategies, seeds, settings, weights; flags outrank it"
    )
    add("--backbones", type=_value(parse_names, "names, such as resnet18,vit_b_16"), metavar="A,B")
    add("--strategies", type=_value(parse_names, "names, such as linear_probe,full"), metavar="A,B")
    add("--seeds", type=_value(parse_seeds, "whole numbers, such as 0,1"), metavar="0,1")
    add("--dataset_path", metavar="DIR", help="folder of images, as for the training")
    add(
        "--weights",
        type=_value(parse_weights, "pairs such as resnet18=resnet18.pth,resnet50=resnet50.pth"),
        metavar="NAME=PATH,...",
        help="files to start from, by backbone; without one: torchvision's best weights",
    )
    add("--out", metavar="OUT", default="comparison", help="folder of cells and results; default: %(default)s")
    add(
        "--max_params",
        type=_value(parse_count, "a number, such as 5M, 500k or 2.5e6"),
        metavar="5M",
        help="maximum number of parameters of the recommended backbone",
    )
    add(
        "--min_images_per_second",
        type=_value(_positive, "a number above 0, such as 50"),
        metavar="50",
        help="minimum speed of the recommended backbone, as measured here",
    )
    add("--anew", action="store_true", help="move cells that had other settings aside and train them again")
    add("--dry_run", action="store_true", help="list the cells and which are done; train nothing")
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError(text)
    return value


def _value(parse: Callable[[str], Any], allowed: str) -> Callable[[str], Any]:
    """A parser of a flag's value whose error says what is allowed."""

    def convert(text: str) -> Any:
        try:
            return parse(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {allowed}") from None

    return convert
