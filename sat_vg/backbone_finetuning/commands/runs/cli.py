"""``sat-vg runs [DIR]``: the runs below a folder, with their state, their best epoch, and how to go on."""

from dataclasses import dataclass

from sat_vg.backbone_finetuning.commands.command_line import main_of

_DESCRIPTION = """\
List the fine-tuning runs below a folder, the newest first: whether each is running, has stopped or has finished, its
epochs, the best epoch with its training and validation loss and the gap between them (validation minus training: the
larger, the more it overfits), the time it took, and the command that goes on with it. Nothing is changed.

  all runs           %(prog)s
  of one folder      %(prog)s runs"""


@dataclass(frozen=True, kw_only=True)
class RunsOptions:
    """Options of ``sat-vg runs``."""

    folder: str = "."
    """Folder that is searched for runs, up to five levels deep. Unset: the current one."""
    json: bool = False
    """Print one JSON object that leaves nothing out."""


main = main_of("runs", RunsOptions, "show_runs", _DESCRIPTION, {"folder": "DIR"})
