"""The folder that a command writes to: one call at a time, and errors that say what to do."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from sat_vg.backbone_finetuning.utils.errors import ConfigError, WriteError
from sat_vg.backbone_finetuning.utils.folder_lock import lock_folder


@contextmanager
def lock_output(folder: Path, busy: str = "") -> Iterator[None]:
    """Keep other calls out of a folder, which is made if need be, and removed at the end if it is empty.

    ``busy`` begins the message where another call has it (a ConfigError). Raises WriteError where it cannot be made.
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
    """Turn an OSError, of a full disk and the like, into a WriteError: ``what_fails (the reason)remedy``."""
    try:
        yield
    except OSError as error:
        raise WriteError(f"{what_fails} ({error.strerror or error}){remedy}") from error
