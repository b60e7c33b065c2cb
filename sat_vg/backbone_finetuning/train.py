"""The training command: ``python -m sat_vg.backbone_finetuning.train --dataset_path DIR``.

This file is the edge: it reads the command line, and turns errors into messages and exit codes. What a run does,
from top to bottom, stands in ``recipe.py``.
"""

import sys

from sat_vg.backbone_finetuning.configs.command_line import parse_command_line
from sat_vg.backbone_finetuning.utils.errors import InterruptedRun, StoppedError, UserError
from sat_vg.backbone_finetuning.utils.printable import printable

EXIT_STOPPED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130


def main(arguments: list[str] | None = None, prog: str = "python -m sat_vg.backbone_finetuning.train") -> int:
    """Run the command; returns its exit code."""
    try:
        command = parse_command_line(sys.argv[1:] if arguments is None else arguments, prog)
        # Imported only now: torch takes seconds, and --help or a mistyped flag should be answered at once.
        from sat_vg.backbone_finetuning import recipe

        run = recipe.dry_run if command.dry_run else recipe.finetune
        run(command.config)
    except UserError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return EXIT_STOPPED if isinstance(error, StoppedError) else EXIT_BAD_INPUT
    except (InterruptedRun, KeyboardInterrupt) as interrupted:
        print(str(interrupted) or "interrupted at once; what was saved before is untouched", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
