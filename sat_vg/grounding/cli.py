"""``sat-vg ground train|evaluate|predict``."""

import sys

from sat_vg.backbone_finetuning.configs.option_parser import parse_options
from sat_vg.backbone_finetuning.utils.exit_codes import run_command
from sat_vg.grounding import train

_USAGE = """\
usage: sat-vg ground train [--OPTION VALUE ...]
       sat-vg ground evaluate CHECKPOINT [DATA] [--OPTION VALUE ...]
       sat-vg ground predict CHECKPOINT IMAGE PHRASE [--OPTION VALUE ...]

  train     train a visual-grounding model on images, phrases and boxes
  evaluate  measure it on labelled phrases
  predict   find a phrase in an image

sat-vg ground COMMAND --help shows the options of a command"""
_EVALUATE = """\
Measure a grounding model: Pr@0.5 ... Pr@0.9, mean and cumulative IoU, with bootstrap intervals, by kind of phrase and
by size of the box, beside what can be had without looking at the image.

  %(prog)s checkpoints/grounding/best_model.pt DIR --split test --out evaluation"""
_PREDICT = """\
Find a phrase in an image.

  %(prog)s best_model.pt image.jpg "the large ship on the left" --out found.png"""


def main(arguments: list[str] | None = None, prog: str = "sat-vg ground") -> int:
    """Run the command that the first argument names; returns the exit code."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name == "train":
        return train.main(rest, f"{prog} train")
    if name in ("evaluate", "predict"):
        return run_command((lambda: _evaluate(rest, prog)) if name == "evaluate" else (lambda: _predict(rest, prog)))
    if name in ("-h", "--help", "help"):
        print(_USAGE)
        return 0
    print(f"error: {prog} has no command {name!r}\n{_USAGE}", file=sys.stderr)
    return 2


def _evaluate(arguments: list[str], prog: str) -> None:
    from sat_vg.grounding.config import EvaluateOptions

    positionals = {"checkpoint": "CHECKPOINT", "data": "DATA"}
    options = parse_options(EvaluateOptions, arguments, f"{prog} evaluate", _EVALUATE, positionals)
    from sat_vg.grounding.evaluation import evaluate  # only now: torch takes seconds

    evaluate(options)


def _predict(arguments: list[str], prog: str) -> None:
    from sat_vg.grounding.config import PredictOptions

    positionals = {"checkpoint": "CHECKPOINT", "image": "IMAGE", "phrase": "PHRASE"}
    options = parse_options(PredictOptions, arguments, f"{prog} predict", _PREDICT, positionals)
    from sat_vg.grounding.prediction import predict  # only now: torch takes seconds

    predict(options)
