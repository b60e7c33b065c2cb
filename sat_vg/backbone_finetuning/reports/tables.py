"""Tables of plain text and of CSV files."""

import csv
import io
from collections.abc import Iterable, Sequence

from sat_vg.backbone_finetuning.utils.printable import one_line

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")


def text_table(header: Sequence[str], rows: Sequence[Sequence[object]], left: Sequence[int] = (0,)) -> str:
    """Columns as wide as they need be: those at the places in ``left`` begin at the left, others end at the right."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = []
    for row in cells:
        aligned = [c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(aligned).rstrip())
    return "\n".join(lines)


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """The text of a CSV file; None is an empty cell."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([header, *rows])
    return file.getvalue()


def spreadsheet_cell(text: str) -> str:
    """A text that no spreadsheet takes for a formula: control characters escaped, an apostrophe before a formula."""
    shown = one_line(text)
    return f"'{shown}" if text.startswith(_FORMULA_STARTS) else shown
