"""Errors of commands become messages and exit codes."""

import atexit
import gc
import sys
import traceback
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
    SIGTERM or SIGUSR1, as schedulers send them. Errors of these kinds, and of a package that cannot be imported, are
    printed without a traceback; any other exception is a bug and keeps it.
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
        except ImportError as error:  # where nothing explains it better, as for packages of an extra
            print(f"error: {name_of_speaker()}{_remedy_of_import(error)}", file=sys.stderr)
            return EXIT_BAD_INPUT
        except (InterruptedRun, StoppedBySignal) as stopped:
            if speaks():
                print(stopped, file=sys.stderr)
            return exit_code_of(stopped.number)
        except KeyboardInterrupt:
            print("interrupted at once; what was saved before is untouched", file=sys.stderr)
            return EXIT_INTERRUPTED


def _remedy_of_import(error: ImportError) -> str:
    """What to do about a package that cannot be imported. Raises the error itself where the package is this one."""
    from importlib.metadata import packages_distributions  # only here: it takes longer than all other modules

    package = (error.name or "").partition(".")[0]
    if package == "sat_vg":
        raise error
    place = traceback.extract_tb(error.__traceback__)[-1].filename
    reason = printable(f"{[*str(error).strip().splitlines(), 'no reason is given'][0]}, in {place}")
    if isinstance(error, ModuleNotFoundError):
        return f"a package is missing ({reason}); pip check says which one to install"
    (name, *_) = packages_distributions().get(package, [package or "PACKAGE"])
    return f"a package is damaged or of another version ({reason}); pip install --force-reinstall {name} mends it"


def _require_current_folder() -> None:
    """Refuse to run in a folder that was removed: relative paths lead nowhere, and MKL ends the process."""
    try:
        Path.cwd()
    except OSError as error:
        raise ConfigError(
            f"the current folder cannot be found ({error.strerror}): it was removed or moved; change to a "
            "folder that exists (cd), and run the command there"
        ) from error
