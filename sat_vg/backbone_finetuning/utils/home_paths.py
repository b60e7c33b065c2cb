"""Paths as people write them, with ``~`` for a home folder."""

from pathlib import Path

from sat_vg.backbone_finetuning.utils.errors import ConfigError


def expand_home(path: str | Path) -> Path:
    """The path with ``~`` or ``~user`` at its start replaced by that home folder.

    Raises:
        ConfigError: there is no such user, or the user has no home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{str(path)!r} begins with a home folder that is not known; write the path out") from error
