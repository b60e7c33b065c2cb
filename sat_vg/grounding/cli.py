"""``sat-vg ground train|evaluate|predict``."""

import sys

from sat_vg.backbone_finetuning.commands.command_line import main_of
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


train = main_of("ground train", GroundingConfig, "training.train_grounding", _TRAIN, {})
_COMMANDS = {
    "train": train,
    "evaluate": main_of(
        "ground evaluate", EvaluateOptions, "evaluation.evaluate", _EVALUATE,
        {"checkpoint": "CHECKPOINT", "data": "DATA"},
    ),
    "predict": main_of(
        "ground predict", PredictOptions, "evaluation.predict", _PREDICT,
        {"checkpoint": "CHECKPOINT", "image": "IMAGE", "phrase": "PHRASE"},
    ),
}  # fmt: skip


def main(arguments: list[str] | None = None, prog: str = "sat-vg ground") -> int:
    """Run the command that the first argument names; returns the exit code."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in _COMMANDS:
        return _COMMANDS[name](rest, f"{prog} {name}")
    if name in ("-h", "--help", "help"):
        print(_USAGE)
        return 0
    print(f"error: {prog} has no command {name!r}\n{_USAGE}", file=sys.stderr)
    return 2
