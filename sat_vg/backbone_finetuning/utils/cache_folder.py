"""The folder of caches."""

import os
from pathlib import Path

from sat_vg.backbone_finetuning.utils.errors import DataError
from sat_vg.backbone_finetuning.utils.home_paths import expand_home


def cache_folder() -> Path:
    """``$SAT_VG_CACHE``, or else ``$XDG_CACHE_HOME/sat_vg``, or else ``~/.cache/sat_vg``; it may not exist yet.

    Raises:
        DataError: none of these is set and the user has no home folder.
    """
    chosen, shared = os.environ.get("SAT_VG_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if chosen:
        return expand_home(chosen)
    if shared:
        return Path(shared) / "sat_vg"
    try:
        return Path.home() / ".cache" / "sat_vg"
    except RuntimeError as error:
        raise DataError("this user has no home folder to keep caches in; set SAT_VG_CACHE to a folder") from error
