"""One record of grounding data: an image, a phrase and the box of what the phrase names."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from sat_vg.grounding.configs.choices import BoxFormat

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Record:
    """A phrase about an image, and the box of what it names.

    Attributes:
        image: path of the image file.
        phrase: the text.
        box: corners ``(x1, y1, x2, y2)`` in pixels of the image, as far as readers know; see ``checks``.
        source: file and place where the record stands, such as ``train.csv, line 7``.
        key: the record's id, where the data have one.
    """

    image: str
    phrase: str
    box: Box
    source: str
    key: str | None = None


@dataclass(frozen=True)
class Listing:
    """The records of a data set as they were read.

    Attributes:
        splits: records by split (``train``, ``val``, ``test``), or under ``""`` where the data do not say.
        problems: records that could not be read, one line each with file and place.
        box_format: what the four numbers of a box are; None: not said, so they have to tell.
        notes: what was decided while reading, in lines.
    """

    splits: dict[str, list[Record]]
    problems: Sequence[str] = ()
    box_format: BoxFormat | None = "xyxy"
    notes: Sequence[str] = field(default_factory=tuple)


def corners(box: Sequence[float], box_format: BoxFormat) -> Box:
    """A box of a format as corners ``(x1, y1, x2, y2)``."""
    a, b, c, d = map(float, box)
    if box_format == "xyxy":
        return a, b, c, d
    if box_format == "xywh":
        return a, b, a + c, b + d
    return a - c / 2, b - d / 2, a + c / 2, b + d / 2
