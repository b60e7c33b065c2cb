"""``sat-vg ground train|evaluate|predict``."""

import sys
from importlib import import_module
from typing import Any, NamedTuple

from sat_vg.backbone_finetuning.configs.option_parser import parse_options
from sat_vg.backbone_finetuning.utils.exit_codes import run_command
from sat_vg.grounding.config import EvaluateOptions, GroundingConfig, PredictOptions

_USAGE = """\
usage: sat-vg ground train [--OPTION VALUE ...]
       sat-vg ground evaluate CHECKPOINT [DATA] [--OPTION VALUE ...]
       sat-vg ground predict CHECKPOINT IMAGE PHRASE [--OPTION VALUE ...]

  train     train a visual-grounding model on images, phrases and boxes
  evaluate  measure it on labelled phrases
  predict   find a phrase in an image

sat-vg ground COMMAND --help shows the options of a command"""
_TRAIN = """\
Train a visual-grounding model: an image and a phrase give the box of what the phrase names.

  own data       %(prog)s --data DIR --backbone checkpoints/finetune/best_model.pt
  frozen         %(prog)s --data DIR --backbone best_model.pt --freeze_backbone true
  no arguments   a small run on built-in drawn tiles

Results: CHECKPOINT_DIR/best_model.pt (the product), CHECKPOINT_DIR/last.pt (the state; the same command continues),
LOG_DIR (TensorBoard and metrics.jsonl). Exit codes: 0 done, 1 stopped by an error while running, 2 a setting or an
input is wrong, 130 stopped by Ctrl-C, 75 by SIGTERM or SIGUSR1."""
_EVALUATE = """\
Measure a grounding model: Pr@0.5 ... Pr@0.9, mean and cumulative IoU, with bootstrap intervals, by kind of phrase and
by size of the box, beside what can be had without looking at the image.

  %(prog)s checkpoints/grounding/best_model.pt DIR --split test --out evaluation"""
_PREDICT = """\
Find a phrase in an image.

  %(prog)s best_model.pt image.jpg "the large ship on the left" --out found.png"""


class _Command(NamedTuple):
    options: Any
    function: str  # imported only when it is run: torch takes seconds, and a mistyped flag is answered at once
    description: str
    positionals: dict[str, str]


_COMMANDS = {
    "train": _Command(GroundingConfig, "training.train_grounding", _TRAIN, {}),
    "evaluate": _Command(
        EvaluateOptions, "evaluation.evaluate", _EVALUATE, {"checkpoint": "CHECKPOINT", "data": "DATA"}
    ),
    "predict": _Command(
        PredictOptions,
        "evaluation.predict",
        _PREDICT,
        {"checkpoint": "CHECKPOINT", "image": "IMAGE", "phrase": "PHRASE"},
    ),
}


def run(name: str, arguments: list[str] | None, prog: str) -> int:
    """Run a command; returns its exit code."""
    command = _COMMANDS[name]

    def action() -> None:
        options = parse_options(command.options, arguments, prog, command.description, command.positionals)
        module, function = command.function.split(".")
        getattr(import_module(f"sat_vg.grounding.{module}"), function)(options)

    return run_command(action)


def main(arguments: list[str] | None = None, prog: str = "sat-vg ground") -> int:
    """Run the command that the first argument names; returns the exit code."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in _COMMANDS:
        return run(name, rest, f"{prog} {name}")
    if name in ("-h", "--help", "help"):
        print(_USAGE)
        return 0
    print(f"error: {prog} has no command {name!r}\n{_USAGE}", file=sys.stderr)
    return 2
