"""Which bands of GeoTIFFs a run reads, as its configuration says it: ``4``, ``red=4``, ``B04`` or ``red=B04``."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sat_vg.backbone_finetuning.configs.choices import AUGMENTATIONS_OF_ANY_BANDS

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


def with_negative_numbers(arguments: Sequence[str]) -> list[str]:
    """Arguments with ``--nodata -3.4e38`` as ``--nodata=-3.4e38``, which argparse does not take for another flag."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] == "--nodata" and argument.startswith("-") and not argument.startswith("--"):
            joined[-1] = f"--nodata={argument}"
        else:
            joined.append(argument)
    return joined


def are_bands(value: Any) -> bool:
    """Whether a value is a list of bands that can be parsed, or None."""
    if value is None:
        return True
    if not isinstance(value, tuple) or not value:
        return False
    try:
        return all(isinstance(v, (int, str)) and not isinstance(v, bool) and parse_band(v) for v in value)
    except ValueError:
        return False


def band_problems(values: Mapping[str, Any]) -> list[str]:
    """What the fields of a configuration say that contradicts its bands, each of which can be parsed; a line each."""
    bands = values["bands"]
    if bands is None:
        return [*_rescale_problems(values), *_nodata_problems(values)]
    beside, problems = f"bands = {list(bands)}:", []
    repeated = _repeated([parse_band(band) for band in bands])
    if repeated is not None:
        problems.append(f"{beside} {repeated!r} comes twice; name every band once")
    if values["dataset_path"] is None:
        problems.append(f"{beside} without dataset_path there are RGB images only; leave it out, or set dataset_path")
    if values["dataset"] is not None:
        problems.append(f"{beside} dataset = {values['dataset']!r} is RGB; leave one of the two out")
    if values["rescale"] != "none":
        problems.append(f"{beside} rescale = {values['rescale']!r} is for RGB images; leave one of the two out")
    if values["cache"] in ("ram", "disk"):
        problems.append(f"{beside} cache = {values['cache']!r} keeps 8-bit RGB images only; use auto or off")
    if values["use_augmentation"] and values["augmentation"] not in (None, "none", *AUGMENTATIONS_OF_ANY_BANDS):
        problems.append(
            f"{beside} augmentation = {values['augmentation']!r} is made for 8-bit red, green, blue; use "
            f"{', '.join(AUGMENTATIONS_OF_ANY_BANDS)} or none"
        )
    return problems


def _rescale_problems(values: Mapping[str, Any]) -> list[str]:
    beside, problems = f"rescale = {values['rescale']!r}:", []
    if values["rescale"] == "none":
        return []
    if values["dataset_path"] is None or values["dataset"] is not None:
        what = "the built-in scenes are" if values["dataset"] is None else f"dataset = {values['dataset']!r} is"
        problems.append(f"{beside} {what} 8-bit RGB already; leave it out, or set dataset_path alone")
    if values["cache"] in ("ram", "disk"):
        problems.append(f"{beside} cache = {values['cache']!r} keeps images as they are stored; use auto or off")
    return problems


def _nodata_problems(values: Mapping[str, Any]) -> list[str]:
    if values["nodata"] is None:
        return []
    return [f"nodata = {values['nodata']:g}: is for the bands of GeoTIFFs; set bands, or leave it out"]


def _repeated(choices: Sequence[BandChoice]) -> str | None:
    names = [choice.name for choice in choices if choice.name is not None]
    sources = [str(choice.source) for choice in choices]
    return next((one for few in (names, sources) for one in few if few.count(one) > 1), None)
