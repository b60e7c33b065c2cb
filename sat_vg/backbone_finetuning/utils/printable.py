"""Texts for people: without control characters, and with the plural where it belongs."""

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path


def printable(text: str) -> str:
    r"""The text with control characters escaped (``\x1b`` and the like); line breaks stay."""
    return "".join(c if c == "\n" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str) -> str:
    """The text with line breaks escaped as well."""
    return printable(text).replace("\n", "\\n")


def list_some(names: Sequence[str], limit: int = 4) -> str:
    """The first names, and how many more there are."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")


def quote_some(names: Sequence[str], limit: int = 10) -> str:
    """The first names in quotes, and how many more there are."""
    return list_some(list(map(repr, names)), limit)


def shortened(text: str, limit: int) -> str:
    """A text of ``limit`` characters at the most, the last of which tells that there were more."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def list_lines(lines: Sequence[object], limit: int = 10) -> str:
    """The first lines, indented, and how many more there are."""
    more = [f"and {len(lines) - limit} more"] if len(lines) > limit else []
    return "\n".join(f"  {line}" for line in [*lines[:limit], *more])


def counted(number: int, one: str, many: str | None = None) -> str:
    """``1 image``, ``1,200 images``; ``many`` is the plural where it is not ``one`` with an s."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def prepare_streams() -> None:
    """Let standard output and error take any text.

    What their encoding lacks, as in the locale C, is written as an escape. Where a process was started without them
    (``>&-``, some services), what is said goes nowhere.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - as long as the process
        elif isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def drop_output() -> None:
    """Send standard output nowhere from now on, what waits to be written included."""
    with contextlib.suppress(OSError):  # a stream without a file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
