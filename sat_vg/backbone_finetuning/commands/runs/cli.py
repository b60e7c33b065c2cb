"""``sat-vg runs [DIR]``: the runs below a folder, with their state, their best epoch, and how to go on."""

from sat_vg.backbone_finetuning.commands.command_line import main_of

_DESCRIPTION = """\
List the fine-tuning runs below a folder, the newest first: whether each is running, has stopped or has finished, its
epochs, the best epoch with its training and validation loss and the gap between them (validation minus training: the
larger, the more it overfits), the time it took, and the command that goes on with it. Nothing is changed.

  all runs           %(prog)s
  of one folder      %(prog)s runs"""
main = main_of("runs", "RunsOptions", "show_runs", _DESCRIPTION, {"folder": "DIR"})
