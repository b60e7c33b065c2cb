"""Where files are kept that can be made again at any time."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$SAT_VG_CACHE``, or else ``$XDG_CACHE_HOME/sat_vg``, or else ``~/.cache/sat_vg``; it may not exist yet."""
    if own := os.environ.get("SAT_VG_CACHE"):
        return Path(own).expanduser()
    general = os.environ.get("XDG_CACHE_HOME")
    return (Path(general) if general else Path.home() / ".cache") / "sat_vg"
