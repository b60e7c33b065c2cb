"""Lines on the terminal; of several processes that train together only rank 0 prints."""

import sys
from typing import Any

from tqdm import tqdm

from sat_vg.backbone_finetuning.utils.printable import printable

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


def say(text: str) -> None:
    """Print a line above any progress bar, at once, with control characters made visible."""
    if speaks():
        tqdm.write(printable(text), file=sys.stdout)
        sys.stdout.flush()


def progress(things: Any = None, **options: Any) -> "tqdm[Any]":
    """A tqdm progress bar that disappears at its end; shown in terminals only."""
    return tqdm(things, **{"leave": False, "disable": None if speaks() else True, **options})
