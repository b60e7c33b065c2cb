"""Which bands of GeoTIFFs a run reads, as its configuration says it: ``4``, ``red=4``, ``B04`` or ``red=B04``."""

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

from sat_vg.backbone_finetuning.configs.ranges import Rule

_LONGEST_NAME = 60
EXAMPLE = "red=4,green=3,blue=2,nir=8"


class BandChoice(NamedTuple):
    """One band.

    Attributes:
        name: what the model calls it; None: as the files do.
        source: its number in a file, from 1, or its description there.
    """

    name: str | None
    source: int | str


def parse_band(given: int | str) -> BandChoice:
    """What one entry of ``bands`` says.

    Raises:
        ValueError: it says nothing that could be a band.
    """
    name, has_name, source = str(given).rpartition("=")
    name, source = name.strip(), source.strip()
    if not source or (has_name and not name) or len(name) > _LONGEST_NAME or not f"{name}{source}".isprintable():
        raise ValueError(f"{given!r} names no band")
    number = int(source) if source.isascii() and source.isdigit() else None
    if number == 0:
        raise ValueError("bands are counted from 1")
    return BandChoice(name or None, source if number is None else number)


def are_bands(value: Any) -> bool:
    """Whether a value is a list of bands that can be parsed."""
    if not isinstance(value, tuple) or not value:
        return False
    try:
        return all(isinstance(v, (int, str)) and not isinstance(v, bool) and parse_band(v) for v in value)
    except ValueError:
        return False


# Bands, as a field of settings holds them.
Bands = Annotated[
    tuple[int | str, ...],
    Rule(
        are_bands,
        "a list of bands, each a number from 1 or a description, with a name and = before it if need be",
        EXAMPLE,
    ),
]


def repeated_band(bands: Sequence[int | str]) -> str | None:
    """A name or a source that comes more than once among bands that can be parsed."""
    choices = [parse_band(band) for band in bands]
    names = [choice.name for choice in choices if choice.name is not None]
    sources = [str(choice.source) for choice in choices]
    return next((one for few in (names, sources) for one in few if few.count(one) > 1), None)
