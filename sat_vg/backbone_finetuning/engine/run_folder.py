"""The folders of a run: finding a run to go on with, and moving an earlier one aside."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sat_vg.backbone_finetuning.engine.checkpoint import LAST, read_run
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.terminal import say

_RUN_FILES = ("best_model.pt", LAST, "step_*.pt")
_LOG_FILES = ("metrics.jsonl", "events.out.tfevents.*", "*.png")


@dataclass(frozen=True)
class EarlierRun:
    """A run that can be gone on with.

    Attributes:
        path: of its state.
        content: what the file holds.
    """

    path: Path
    content: dict[str, Any]


def find_run(checkpoint_dir: Path, resume: str) -> EarlierRun | None:
    """The run to go on with.

    Args:
        checkpoint_dir: of this run.
        resume: ``auto`` (the run in ``checkpoint_dir`` if there is one), ``never``, or the path of a last.pt.

    Raises:
        CheckpointError: the file cannot be read, or a path was given that is none.
    """
    if resume == "never":
        return None
    path = checkpoint_dir / LAST if resume == "auto" else Path(resume).expanduser()
    if resume == "auto" and not path.exists():
        return None
    return EarlierRun(path, read_run(path))


def open_folders(checkpoint_dir: Path, log_dir: Path, begins_anew: bool) -> None:
    """Make the folders; where a run begins anew, move what an earlier one left there aside.

    Raises:
        ConfigError: a folder cannot be made or written to.
    """
    for folder, patterns in ((checkpoint_dir, _RUN_FILES), (log_dir, _LOG_FILES)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ConfigError(
                f"the folder {str(folder)!r} cannot be written to ({error.strerror}); choose others with "
                "--checkpoint_dir DIR --log_dir DIR"
            ) from error
        if begins_anew:
            _move_aside(folder, patterns)


def _move_aside(folder: Path, patterns: tuple[str, ...]) -> None:
    files = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    if not files:
        return
    number = 1
    while (folder / f"earlier_run_{number}").exists():
        number += 1
    aside = folder / f"earlier_run_{number}"
    aside.mkdir()
    for path in files:
        path.rename(aside / path.name)
    say(f"an earlier run was moved to {aside}")
