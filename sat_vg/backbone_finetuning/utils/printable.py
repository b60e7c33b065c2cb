"""Texts that cannot steer the terminal they are printed on."""


def printable(text: str) -> str:
    r"""The text with control characters escaped (``\x1b`` and the like); line breaks stay."""
    return "".join(c if c == "\n" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str) -> str:
    """The text with line breaks escaped as well."""
    return printable(text).replace("\n", "\\n")
