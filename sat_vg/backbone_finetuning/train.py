"""The training command: ``python -m sat_vg.backbone_finetuning.train --dataset_path DIR``.

This file is the edge: it reads the command line. What a run does, from top to bottom, stands in ``training/run.py``.
"""

import sys

from sat_vg.backbone_finetuning.utils.exit_codes import run_command
from sat_vg.backbone_finetuning.utils.quick_imports import without_garbage_collection
from sat_vg.backbone_finetuning.utils.stop_signals import handling, ignore_from_now_on, leave_at_once


def main(arguments: list[str] | None = None, prog: str = "python -m sat_vg.backbone_finetuning.train") -> int:
    """Run the command; returns its exit code."""

    def action() -> None:
        # Imported only now: the file of the settings is the user's to edit, and what is wrong in it is told as such.
        from sat_vg.backbone_finetuning.configs.command_line import parse_command_line

        command = parse_command_line(sys.argv[1:] if arguments is None else arguments, prog)
        # Imported only now: torch takes seconds, and --help or a mistyped flag should be answered at once.
        with handling(leave_at_once), without_garbage_collection():
            from sat_vg.backbone_finetuning.training import run as recipe
        run = recipe.dry_run if command.dry_run else recipe.finetune
        run(command.config)

    return run_command(action)


if __name__ == "__main__":
    code = main()
    ignore_from_now_on()
    sys.exit(code)
