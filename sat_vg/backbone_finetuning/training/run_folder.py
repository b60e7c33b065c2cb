"""The folders of a run: finding a run to go on with, and moving an earlier one aside."""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from sat_vg.backbone_finetuning.configs.finetune_config import FIELDS_FREE_ON_RESUME, FinetuneConfig
from sat_vg.backbone_finetuning.data.checks.readable import LEFT_OUT
from sat_vg.backbone_finetuning.models.artifact import BEST_MODEL
from sat_vg.backbone_finetuning.training.checkpoint import LAST, RunState, read_newest_sound, read_run
from sat_vg.backbone_finetuning.training.run_identity import as_begun, config_of_run
from sat_vg.backbone_finetuning.utils.errors import CheckpointError, WriteError
from sat_vg.backbone_finetuning.utils.folder_lock import lock_folder
from sat_vg.backbone_finetuning.utils.home_paths import expand_home
from sat_vg.backbone_finetuning.utils.safe_files import atomic_write, remove_unfinished
from sat_vg.backbone_finetuning.utils.terminal import say

_RUN_FILES = (BEST_MODEL, LAST, "step_*.pt")
_LOG_FILES = (
    "metrics.jsonl",
    "events.out.tfevents.*",
    "training_images.png",
    "confusion_matrix.png",
    "class_scores.png",
    "learning_curves.png",
    "mistakes.png",
    "projector",
    "projector_config.pbtxt",
    LEFT_OUT,
)


@dataclass(frozen=True)
class EarlierRun:
    """A run that can be gone on with.

    Attributes:
        path: of its state.
        content: what the file holds.
        resumed_from: the path that ``--resume`` named and a hash of the state in it, if it named one.
    """

    path: Path
    content: dict[str, Any]
    resumed_from: dict[str, str] = field(default_factory=dict)

    def lives_in(self, folder: Path) -> bool:
        """Whether its files lie in ``folder``."""
        return self.path.parent.resolve() == folder.resolve()


def find_run(checkpoint_dir: Path, resume: str) -> EarlierRun | None:
    """The run to go on with.

    A run that ``--resume PATH`` began in ``checkpoint_dir`` is gone on with by the same command, wherever it was
    stopped: its states say which state they came from. That one may be gone by then, if it lay in the same folder.

    Args:
        checkpoint_dir: of this run.
        resume: ``auto`` (the run in ``checkpoint_dir`` if there is one), ``never``, or the path of a last.pt.

    Raises:
        CheckpointError: the file cannot be read, or a path was given that is none.
    """
    if resume == "never":
        return None
    if resume == "auto":
        found = read_newest_sound(checkpoint_dir)
        return None if found is None else _in_own_folder(*found)
    path = expand_home(resume)
    begun = _begun_from(path, checkpoint_dir)
    if begun is not None and not path.exists():
        return begun
    content = read_run(path)
    resumed_from = {"path": str(path.absolute()), "state": _hash_of(content)}
    if begun is not None and begun.resumed_from["state"] == resumed_from["state"]:
        return begun
    return EarlierRun(path, content, resumed_from)


def _begun_from(path: Path, checkpoint_dir: Path) -> EarlierRun | None:
    """The run in a folder, if ``--resume`` began it from a state at this path."""
    try:
        found = read_newest_sound(checkpoint_dir)
    except CheckpointError:
        return None  # it is moved aside, like all other files there
    run = None if found is None else _in_own_folder(*found)
    return run if run is not None and run.resumed_from.get("path") == str(path.absolute()) else None


def _in_own_folder(path: Path, content: dict[str, Any]) -> EarlierRun:
    return EarlierRun(path, content, content.get("resumed_from", {}))


def _hash_of(content: dict[str, Any]) -> str:
    """What tells a state of a run from all others; the losses and times in it are not twice the same."""
    content_id = (sorted(content["state"].items()), sorted(content["config"].items()), content["data_fingerprint"])
    return hashlib.sha256(repr(content_id).encode("utf-8", "surrogateescape")).hexdigest()


def free_name(config: FinetuneConfig) -> FinetuneConfig:
    """The configuration with a ``name`` under which no other run lies: NAME, NAME_2, NAME_3 and so on.

    An unfinished run with these settings keeps its name, so that the same command goes on with it.
    """
    if config.name is None:
        return config
    for number in count(1):
        named = config if number == 1 else config.replace(name=f"{config.name}_{number}")
        folder = expand_home(named.checkpoint_dir)
        if not any(found for pattern in _RUN_FILES for found in folder.glob(pattern)) or _goes_on(named, folder):
            break
    if number > 1:
        say(f"run: {named.name}, as another run has the name {config.name}")
    return named


def _goes_on(config: FinetuneConfig, folder: Path) -> bool:
    """Whether an unfinished run with these settings lies in a folder."""
    found = read_newest_sound(folder) if config.resume == "auto" else None
    if found is None or found[1]["state"].get("finished"):
        return False
    # Fields that are unset until the images are known are whatever that run found; defaults follow its strategy.
    of_run = config_of_run(found[1], folder)
    asked = {name: value for name, value in as_begun(config, of_run).to_dict().items() if value not in (None, "auto")}
    return all(of_run.to_dict()[name] == asked[name] for name in asked.keys() - FIELDS_FREE_ON_RESUME)


@contextmanager
def own_folders(checkpoint_dir: Path, log_dir: Path) -> Iterator[None]:
    """Make the folders and keep other runs out of them.

    Raises:
        ConfigError: a folder cannot be made or written to, or another run uses it.
    """
    with ExitStack() as locks:
        for folder in dict.fromkeys(path.resolve() for path in (checkpoint_dir, log_dir)):
            locks.enter_context(lock_folder(folder))
        yield


def clear_folders(checkpoint_dir: Path, log_dir: Path, begins_anew: bool) -> None:
    """Remove what a killed run was writing; where a run begins anew, move what an earlier one left there aside.

    Raises:
        WriteError: a folder cannot be changed.
    """
    try:
        for folder, patterns in ((checkpoint_dir, _RUN_FILES), (log_dir, _LOG_FILES)):
            remove_unfinished(folder, patterns)
            if begins_anew:
                _move_aside(folder, patterns)
    except OSError as error:
        raise WriteError(
            f"an earlier run's files in {str(checkpoint_dir)!r} and {str(log_dir)!r} cannot be put away ({error}); "
            "mend that, or choose other folders with --checkpoint_dir DIR --log_dir DIR"
        ) from error


def adopt_best_model(earlier: EarlierRun, checkpoint_dir: Path, state: RunState) -> None:
    """Bring the best model so far along to another folder; where it is lost, let the next epoch be the best."""
    beside, own = earlier.path.with_name(BEST_MODEL), checkpoint_dir / BEST_MODEL
    if not own.exists() and beside.exists():
        _copy(beside, own)
    if own.exists() or state.best_value is None:
        return
    if state.finished:
        raise CheckpointError(
            f"the run of {str(earlier.path)!r} has finished, but its {BEST_MODEL} is gone from "
            f"{str(checkpoint_dir)!r}; put it back, or train anew with --resume never"
        )
    say(f"{BEST_MODEL} of the earlier run is gone; the next epoch counts as the best so far")
    state.best_value = None


def _copy(source: Path, target: Path) -> None:
    try:
        with source.open("rb") as reader, atomic_write(target) as writer:
            shutil.copyfileobj(reader, writer)
    except OSError as error:
        raise WriteError(f"{str(source)!r} cannot be copied to {str(target)!r} ({error}): make room") from error


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
