"""Files among the images that are not read as such, told by their ending."""

from collections import Counter
from pathlib import PurePath

# What lies beside images: their geometry and metadata, tables, texts, and what systems leave behind.
_COMPANIONS = frozenset(
    {
        ".txt", ".csv", ".tsv", ".json", ".geojson", ".xml", ".yaml", ".yml", ".md", ".html", ".pdf", ".log", ".ini",
        ".db", ".lnk", ".url", ".md5", ".sha256", ".py", ".ipynb", ".sh", ".aux", ".ovr", ".msk", ".tfw", ".tifw",
        ".tiffw", ".jgw", ".jpgw", ".jpw", ".pgw", ".pngw", ".bpw", ".wld", ".prj", ".points", ".shp", ".shx", ".dbf",
        ".cpg", ".kml", ".imd", ".rpb", ".rpc", ".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".pt", ".pth", ".npz",
    }
)  # fmt: skip
_LISTED = 5


def count_left_out(name: str, left_out: "Counter[str]") -> None:
    """Count a file that is no image by its ending, unless it is of a kind that lies beside images."""
    ending = PurePath(name).suffix.lower()
    if ending not in _COMPANIONS:
        left_out[ending] += 1


def describe_left_out(left_out: "Counter[str]") -> str:
    """How many files are left out by ending, after a semicolon; empty where there are none."""
    if not left_out:
        return ""
    by_count = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    listed = ", ".join(f"{count} {ending or 'without an ending'}" for ending, count in by_count[:_LISTED])
    more = f" and {len(left_out) - _LISTED} more endings" if len(left_out) > _LISTED else ""
    return f"; left out, as their endings are not read: {listed}{more}"
