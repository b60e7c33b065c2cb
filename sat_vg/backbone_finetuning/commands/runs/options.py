"""The options of ``sat-vg runs``."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RunsOptions:
    """Options of ``sat-vg runs``."""

    folder: str = "."
    """Folder that is searched for runs, up to five levels deep. Unset: the current one."""
    json: bool = False
    """Print one JSON object that leaves nothing out."""
