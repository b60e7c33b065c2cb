"""``sat-vg COMMAND``: every command of the package under one name."""

import sys
from importlib import import_module
from typing import NamedTuple

from sat_vg import __version__
from sat_vg.backbone_finetuning.utils.exit_codes import run_command
from sat_vg.backbone_finetuning.utils.printable import prepare_streams
from sat_vg.backbone_finetuning.utils.stop_signals import ignore_from_now_on

_COMMANDS = "sat_vg.backbone_finetuning.commands"


class Command(NamedTuple):
    """A command.

    Attributes:
        module: where its ``main(arguments, prog)`` stands.
        summary: what it does, in one line.
        group: the heading under which the help lists it.
    """

    module: str
    summary: str
    group: str


COMMANDS = {
    "check": Command(f"{_COMMANDS}.check.cli", "report what is wrong with a data set", "before training"),
    "backbones": Command(f"{_COMMANDS}.backbones", "list the backbones and their stages", "before training"),
    "tile": Command("sat_vg.scenes.tile_cli", "cut labelled windows out of large images", "before training"),
    "recommend": Command(
        f"{_COMMANDS}.recommend.cli", "a backbone, strategy and batch size to begin with", "before training"
    ),
    "shard": Command(f"{_COMMANDS}.shard.cli", "write images into tar files to train from", "before training"),
    "train": Command("sat_vg.backbone_finetuning.train", "fine-tune a backbone on images", "training"),
    "compare": Command(f"{_COMMANDS}.compare.cli", "train backbones x strategies x seeds and rank them", "training"),
    "tune": Command(f"{_COMMANDS}.tune.cli", "search over settings of the training", "training"),
    "runs": Command(f"{_COMMANDS}.runs.cli", "list runs: state, best epoch, how to go on", "after training"),
    "evaluate": Command(f"{_COMMANDS}.evaluate.cli", "measure a best_model.pt on labelled images", "after training"),
    "predict": Command(f"{_COMMANDS}.predict.cli", "classes and probabilities of images", "after training"),
    "extract": Command(f"{_COMMANDS}.extract.cli", "write feature vectors or maps into a file", "after training"),
    "search": Command("sat_vg.scenes.search_cli", "find the windows or images like one", "after training"),
    "export": Command(f"{_COMMANDS}.export.cli", "write a model for ONNX, DETR, torchvision, …", "after training"),
    "serve": Command(f"{_COMMANDS}.serve.cli", "answer over HTTP with a best_model.pt", "after training"),
    "ground": Command("sat_vg.grounding.cli", "train, evaluate and use a visual-grounding model", "grounding"),
}


def usage() -> str:
    """The commands by group, a line each."""
    width = max(map(len, COMMANDS))
    lines = ["usage: sat-vg COMMAND [...]", "       sat-vg --version"]
    for group in dict.fromkeys(command.group for command in COMMANDS.values()):
        lines += ["", f"{group}:"]
        lines += [f"  {name.ljust(width)}  {c.summary}" for name, c in COMMANDS.items() if c.group == group]
    return "\n".join([*lines, "", "sat-vg COMMAND --help shows the options of a command"])


def main() -> int:
    """Run the command that the first argument names; returns the exit code."""
    prepare_streams()
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in COMMANDS:
        # Importing it can fail, too: some options have defaults of the settings file, which users edit.
        code = run_command(lambda: import_module(COMMANDS[name].module).main(sys.argv[2:], f"sat-vg {name}"))
        ignore_from_now_on()
        return code
    if name in ("-h", "--help", "help"):
        print(usage())
        return 0
    if name in ("-V", "--version"):
        print(f"sat_vg {__version__}")
        return 0
    print(f"error: sat-vg has no command {name!r}\n{usage()}", file=sys.stderr)
    return 2
