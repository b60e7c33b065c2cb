"""Names of classes: which are the same, which look alike, and how several stand in one cell of a table."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

SEPARATOR = "|"  # between the classes in a cell, unless label_separator says otherwise
_LISTED = 10  # names shown in a message
_NUMBER = re.compile(r"[+-]?\d{1,15}(\.\d{0,15})?")
_COPY = re.compile(r"(?<=\S)([\s_-]+copy)?(\s*\(\d{1,3}\))?$", re.IGNORECASE)  # of folders, as systems name them
_INDICATOR = re.compile(r"(?<![\w.])[01](?:\.0)?(?![\w.])")
_AROUND_INDICATORS = " \t,;|/+&[](){}"
_MISSING = frozenset({"nan", "<na>", "#n/a", "n/a", "null", "none", "nat"})  # pandas, R, Excel, SQL, Python


def same_form(name: str) -> str:
    """A name in the composed form of Unicode (NFC): macOS writes letters and their accents apart, Linux does not."""
    return unicodedata.normalize("NFC", name)


def alike(name: str) -> str:
    """What names have in common that differ in what is easily overlooked.

    That is case, spaces, hyphens and underscores, quotes around the name, characters that are not shown, and the way
    a number is written (``1``, ``01``, ``1.0``).
    """
    shown = "".join(letter for letter in unicodedata.normalize("NFKC", name) if unicodedata.category(letter) != "Cf")
    bare = _without_quotes(shown.strip())
    if _NUMBER.fullmatch(bare):
        return f"{float(bare):g}"
    return " ".join(re.split(r"[\s_-]+", bare.casefold().strip()))


def look_alikes(names: Iterable[str]) -> list[str]:
    """A line for each group of classes whose names are easily taken for one another."""
    groups: dict[str, list[str]] = defaultdict(list)
    names = tuple(names)
    known = set(map(alike, names))
    for name in names:
        copied = alike(_COPY.sub("", name))  # "forest (1)" beside "forest"
        groups[copied if copied in known else alike(name)].append(name)
    lines = []
    for group in (group for group in groups.values() if len(group) > 1):
        only_case_or_spaces = len({" ".join(same_form(name).casefold().split()) for name in group}) == 1
        how = "differ only in case or spaces" if only_case_or_spaces else "look alike"
        lines.append(f"the classes {' and '.join(map(repr, group))} {how}; if they are one, rename them")
    return lines


def missing_values(names: Iterable[str]) -> list[str]:
    """A line for each class that is called as programs write a missing value."""
    return [
        f"the class {name!r} is called as tables write a missing value; if these images have no class, remove their "
        "lines"
        for name in names
        if name.lower() in _MISSING
    ]


def describe_unknown(places: Mapping[str, str], known: Iterable[str]) -> str:
    """Names that are not known, each with its place, which may be empty, and the known one that it may stand for."""
    meant = {alike(name): name for name in known}
    shown = []
    for name, place in list(places.items())[:_LISTED]:
        details = [place, f"there is {meant[alike(name)]!r}" if alike(name) in meant else ""]
        shown.append(repr(name) + (f" ({'; '.join(filter(None, details))})" if any(details) else ""))
    return ", ".join(shown) + (f" and {len(places) - _LISTED} more" if len(places) > _LISTED else "")


def names_in(cell: str, separator: str = SEPARATOR) -> tuple[str, ...]:
    """The names of the classes in a cell; none in an empty one.

    With a separator of one's own, brackets around the cell and quotes around the names, as Python and JSON write
    lists, are taken off. A separator of spaces stands for any number of them.
    """
    if separator == SEPARATOR:
        return tuple(name.strip() for name in cell.split(separator)) if cell.strip() else ()
    bare = cell.strip()
    if bare[:1] + bare[-1:] in ("[]", "()", "{}"):
        bare = bare[1:-1].strip()
    if not bare:
        return ()
    parts = bare.split() if separator.isspace() else bare.split(separator)
    return tuple(_without_quotes(part.strip()) for part in parts)


def _without_quotes(name: str) -> str:
    return name[1:-1].strip() if len(name) > 1 and name[0] == name[-1] and name[0] in "'\"" else name


def check_cells(cells: Sequence[str], separator: str, column: str) -> list[str]:
    """A line where cells seem to hold several classes with something else than the separator between.

    Commas, semicolons and lists in brackets are taken for that; spaces, slashes, plus and ampersand only where each
    of the parts occurs in another cell too, as in ``water``, ``water clouds``. In a column ``label`` a cell is one
    class, so there only the separator itself and brackets are looked for. Cells such as ``1 0 0`` are told apart from
    names.
    """
    if _are_indicators(cells):
        return [
            f"the cells hold a 0 or 1 for each class, such as {next(filter(str.strip, cells))!r}, and are read as "
            "names of classes; write the names in their place, and several as 'sea|ships' in a column labels"
        ]
    sure, maybe = (("[", ",", ";", "\t"), (" ", "/", "+", "&")) if column == "labels" else (("[", separator), ())
    for mark in (*sure, *maybe):
        if column == "labels" and (mark == separator or (mark == "[" and separator != SEPARATOR)):
            continue
        found = [
            cell for cell in cells if (cell[:1] + cell[-1:] in ("[]", "()", "{}") if mark == "[" else mark in cell)
        ]
        if mark in maybe:
            recurring = _recurring({name for cell in cells for name in names_in(cell, separator)}, mark)
            found = [cell for cell in found if recurring.intersection(names_in(cell, separator))]
        if found:
            return [_describe_cells(found, mark, column)]
    return []


def _are_indicators(cells: Sequence[str]) -> bool:
    """Whether all cells hold as many zeros and ones, more than one: names would not come twice in a cell."""
    filled = [cell for cell in cells if cell.strip()]
    rows = [_INDICATOR.findall(cell) for cell in filled]
    if any(_INDICATOR.sub("", cell).strip(_AROUND_INDICATORS) for cell in filled):
        return False
    return len({len(row) for row in rows}) == 1 and any(len(set(row)) < len(row) for row in rows)


def _recurring(names: set[str], mark: str) -> set[str]:
    """Names of which every part occurs in another name, too."""
    parts = {name: frozenset(name.split(mark)) - {""} for name in names}
    counts = Counter(part for several in parts.values() for part in several)
    return {name for name, several in parts.items() if len(several) > 1 and all(counts[part] > 1 for part in several)}


def _describe_cells(found: Sequence[str], mark: str, column: str) -> str:
    many = "1 cell holds" if len(found) == 1 else f"{len(found)} cells hold"
    if column == "label":
        return (
            f"{many} what looks like several classes, such as {found[0]!r}, and the column label takes it for one; "
            "if they are several, call the column labels"
        )
    separator = mark if mark != "[" else "," if "," in found[0] else " "
    return (
        f"{many} what looks like several classes with {separator!r} between, such as {found[0]!r}, and each is taken "
        f"for one class; if they are several: --label_separator {separator!r}"
    )
