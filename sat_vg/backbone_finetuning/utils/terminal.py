"""Lines for the person at the terminal, from one process: of several that train together rank 0 speaks."""

import sys
from typing import Any

from tqdm import tqdm

from sat_vg.backbone_finetuning.utils.printable import printable

_rank: int | None = None


def speak_as(rank: int) -> None:
    """From now on this process is one of several; all but rank 0 are silent, but for their errors."""
    global _rank
    _rank = rank


def name_of_speaker() -> str:
    """What an error begins with where it could be any of several processes': ``rank 3: ``; empty for one alone."""
    return "" if _rank is None else f"rank {_rank}: "


def speaks() -> bool:
    """Whether this process tells what all of them do."""
    return not _rank


def say(text: str) -> None:
    """Print a line above any progress bar, at once, with control characters made visible."""
    if speaks():
        tqdm.write(printable(text), file=sys.stdout)
        sys.stdout.flush()


def progress(things: Any = None, **options: Any) -> "tqdm[Any]":
    """A progress bar, as tqdm takes it, which is gone when it ends; only where a person looks on."""
    return tqdm(things, **{"leave": False, "disable": None if speaks() else True, **options})
