"""The folder that a command writes to: one call at a time, and errors that say what to do."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from sat_vg.backbone_finetuning.utils.errors import ConfigError, WriteError
from sat_vg.backbone_finetuning.utils.folder_lock import lock_folder


@contextmanager
def lock_output(folder: Path, busy: str = "") -> Iterator[None]:
    """Keep other calls out of a folder, which is removed at the end if it is empty.

    Args:
        folder: made if need be.
        busy: beginning of the message where another call has the folder.

    Raises:
        ConfigError: another call has it.
        WriteError: it cannot be made or written to.
    """
    with ExitStack() as lock:
        try:
            lock.enter_context(lock_folder(folder, "choose another --out"))
        except ConfigError as error:
            if isinstance(error.__cause__, OSError):
                raise WriteError(str(error)) from error.__cause__
            raise ConfigError(f"{busy}{error}") from None
        yield
    with suppress(OSError):  # it is not empty
        folder.rmdir()


@contextmanager
def explaining_writing(what_fails: str, remedy: str) -> Iterator[None]:
    """Turn the error of a full disk and the like into one that says what to do: ``what_fails (the reason)remedy``.

    Raises:
        WriteError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise WriteError(f"{what_fails} ({error.strerror or error}){remedy}") from error
