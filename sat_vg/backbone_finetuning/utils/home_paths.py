"""Paths as people write them, with ``~`` for a home folder."""

from pathlib import Path

from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.printable import shortened

_LONGEST_NAME, _LONGEST_PATH = 255, 4095  # bytes; what file systems of Linux take


def expand_home(path: str | Path) -> Path:
    """The path with ``~`` or ``~user`` at its start replaced by that home folder.

    Raises:
        ConfigError: there is no such user, or the user has no home folder; or no file can have this path.
    """
    text = str(path).encode("utf-8", "replace")
    is_long = len(text) > _LONGEST_PATH or max(map(len, text.split(b"/"))) > _LONGEST_NAME
    if is_long or b"\0" in text:
        reason = "File name too long" if is_long else "it holds a NUL"
        raise ConfigError(f"no file can be called {shortened(str(path), 60)!r} ({reason}); name another")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{str(path)!r} begins with a home folder that is not known; write the path out") from error
