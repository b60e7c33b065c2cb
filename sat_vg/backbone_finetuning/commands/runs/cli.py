"""``sat-vg runs [DIR]``: the runs below a folder, with their state, their best epoch, and how to go on."""

from sat_vg.backbone_finetuning.configs.option_parser import parse_options
from sat_vg.backbone_finetuning.utils.exit_codes import run_command

_DESCRIPTION = """\
List the fine-tuning runs below a folder, the newest first: whether each is running, has stopped or has finished, its
epochs, the best epoch with its training and validation loss and the gap between them (validation minus training: the
larger, the more it overfits), the time it took, and the command that goes on with it. Nothing is changed.

  all runs           %(prog)s
  of one folder      %(prog)s runs"""


def main(arguments: list[str] | None = None, prog: str = "sat-vg runs") -> int:
    """Run the command; returns its exit code."""

    def action() -> None:
        from sat_vg.backbone_finetuning.commands.runs.options import RunsOptions

        options = parse_options(RunsOptions, arguments, prog, _DESCRIPTION, {"folder": "DIR"})
        # Imported only now: torch takes seconds, and --help or a mistyped flag should be answered at once.
        from sat_vg.backbone_finetuning.commands.runs.run import show_runs

        show_runs(options)

    return run_command(action)
