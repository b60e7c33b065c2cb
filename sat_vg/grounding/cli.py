"""``sat-vg ground train|evaluate|predict``."""

import sys
from importlib import import_module
from typing import Any

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


# By name: its options, the function that takes them, its help, and the options that are given by position.
_COMMANDS: dict[str, tuple[Any, str, str, tuple[str, ...]]] = {
    "train": (GroundingConfig, "training.train_grounding", _TRAIN, ()),
    "evaluate": (EvaluateOptions, "evaluation.evaluate", _EVALUATE, ("checkpoint", "data")),
    "predict": (PredictOptions, "evaluation.predict", _PREDICT, ("checkpoint", "image", "phrase")),
}


def run(name: str, arguments: list[str] | None, prog: str) -> int:
    """Run a command; returns its exit code."""
    kind, place, description, positionals = _COMMANDS[name]

    def action() -> None:
        options = parse_options(kind, arguments, prog, description, {one: one.upper() for one in positionals})
        module, function = place.split(".")  # imported only now: torch takes seconds, a mistyped flag needs none
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
