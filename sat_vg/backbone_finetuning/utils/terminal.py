"""Lines on the terminal; of several processes that train together only rank 0 prints."""

import sys
from typing import Any

from tqdm import tqdm

from sat_vg.backbone_finetuning.utils.errors import StoppedError
from sat_vg.backbone_finetuning.utils.printable import drop_output, printable

_rank: int | None = None


def speak_as(rank: int) -> None:
    """Mark this process as one of several; all but rank 0 print nothing but errors."""
    global _rank
    _rank = rank


def name_of_speaker() -> str:
    """Prefix of error messages among several processes: ``rank 3: ``; empty for one alone."""
    return "" if _rank is None else f"rank {_rank}: "


def speaks() -> bool:
    """Whether this process prints."""
    return not _rank


def say(text: str, ends_with_reader: bool = False) -> None:
    """Print a line above any progress bar, at once, with control characters made visible.

    Where the reader of a pipe has gone (``| head``), this and all that follows is said to nobody.

    Args:
        text: the line.
        ends_with_reader: for a command whose lines are its result: raise ``BrokenPipeError`` then.

    Raises:
        StoppedError: standard output cannot be written to, as on a full disk.
    """
    if not speaks():
        return
    try:
        tqdm.write(printable(text), file=sys.stdout)
        sys.stdout.flush()
    except OSError as error:
        drop_output()
        if not isinstance(error, BrokenPipeError):
            reason = error.strerror or str(error)
            raise StoppedError(
                f"standard output cannot be written to ({reason}): make room, or send it elsewhere"
            ) from None
        if ends_with_reader:
            raise


def progress(things: Any = None, **options: Any) -> "tqdm[Any]":
    """A tqdm progress bar that disappears at its end; shown in terminals only."""
    return tqdm(things, **{"leave": False, "disable": None if speaks() else True, **options})
