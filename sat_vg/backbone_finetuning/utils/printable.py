"""Texts for people: without control characters, and with the plural where it belongs."""

from collections.abc import Sequence


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


def counted(number: int, one: str, many: str | None = None) -> str:
    """``1 image``, ``1,200 images``; ``many`` is the plural where it is not ``one`` with an s."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
