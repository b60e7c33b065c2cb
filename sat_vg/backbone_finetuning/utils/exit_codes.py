"""Errors of commands become messages and exit codes."""

import atexit
import gc
import sys
from collections.abc import Callable
from pathlib import Path

from sat_vg.backbone_finetuning.utils.errors import ConfigError, InterruptedRun, StoppedError, UserError
from sat_vg.backbone_finetuning.utils.printable import prepare_streams, printable
from sat_vg.backbone_finetuning.utils.stop_signals import (
    EXIT_INTERRUPTED,
    StopAtOnce,
    StoppedBySignal,
    exit_code_of,
    handling,
)
from sat_vg.backbone_finetuning.utils.terminal import name_of_speaker, speaks

EXIT_STOPPED, EXIT_BAD_INPUT = 1, 2


def run_command(action: Callable[[], int | None]) -> int:
    """Run a command's action; returns the exit code, which is the action's own where it gives one.

    0: done. 1: a run that had begun cannot go on. 2: something the user can mend. 130: stopped by Ctrl-C. 75: by
    SIGTERM or SIGUSR1, as schedulers send them. Errors of these kinds are printed without a traceback; any other
    exception is a bug and keeps it.
    """
    atexit.register(gc.freeze)  # an ending interpreter need not look through all objects for what is unused
    prepare_streams()
    stop = StopAtOnce()
    with handling(stop):
        try:
            try:
                _require_current_folder()
                return action() or 0
            finally:
                stop.is_over = True
        except UserError as error:
            print(f"error: {name_of_speaker()}{printable(str(error))}", file=sys.stderr)
            return EXIT_STOPPED if isinstance(error, StoppedError) else EXIT_BAD_INPUT
        except (InterruptedRun, StoppedBySignal) as stopped:
            if speaks():
                print(stopped, file=sys.stderr)
            return exit_code_of(stopped.number)
        except KeyboardInterrupt:
            print("interrupted at once; what was saved before is untouched", file=sys.stderr)
            return EXIT_INTERRUPTED


def _require_current_folder() -> None:
    """Refuse to run in a folder that was removed: relative paths lead nowhere, and MKL ends the process."""
    try:
        Path.cwd()
    except OSError as error:
        raise ConfigError(
            f"the current folder cannot be found ({error.strerror}): it was removed or moved; change to a "
            "folder that exists (cd), and run the command there"
        ) from error
