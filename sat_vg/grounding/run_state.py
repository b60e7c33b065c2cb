"""The state of a grounding run in last.pt: saved, and restored to the same bits."""

import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from sat_vg.backbone_finetuning.utils.errors import CheckpointError
from sat_vg.backbone_finetuning.utils.printable import counted
from sat_vg.backbone_finetuning.utils.tensor_files import load_tensors, save_tensors
from sat_vg.backbone_finetuning.utils.terminal import say
from sat_vg.grounding.configs.grounding_config import FREE_ON_RESUME, GroundingConfig
from sat_vg.grounding.models.grounding_model import GroundingModel

BEST_MODEL, LAST, BEFORE_LAST = "best_model.pt", "last.pt", "before_last.pt"
_FORMAT, _SCHEMA = "sat_vg.grounding_run", 1
_PARTS = {"state": dict, "config": dict, "data": str, "network": dict, "optimizer": dict, "scaler": dict}


@dataclass
class GroundingState:
    """How far a run is. Plain numbers; all random streams follow from them.

    Attributes:
        epoch: finished epochs.
        step: optimizer steps taken.
        step_in_epoch: optimizer steps of the running epoch.
        loss_sum: loss summed over the phrases of the running epoch so far.
        phrases: number of these phrases.
        seconds: time spent on them.
        best: Pr@0.5 and mean IoU of the best epoch, by which epochs are compared.
        best_epoch: number of the best epoch, from 1; 0 before the first validation.
        finished: whether all epochs are done.
    """

    epoch: int = 0
    step: int = 0
    step_in_epoch: int = 0
    loss_sum: float = 0.0
    phrases: int = 0
    seconds: float = 0.0
    best: tuple[float, float] = (-1.0, -1.0)
    best_epoch: int = 0
    finished: bool = False


@dataclass
class GroundingRun:
    """What training changes, and what a state belongs to.

    Attributes:
        config: settings of the run.
        folder: folder of last.pt and best_model.pt.
        fingerprint: hash of the data.
        model: the model.
        optimizer: its optimizer.
        scaler: loss scaling of float16.
        state: how far the run is.
        saved_at: time of the last saving, in seconds of ``time.monotonic``.
    """

    config: GroundingConfig
    folder: Path
    fingerprint: str
    model: GroundingModel
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    state: GroundingState = field(default_factory=GroundingState)
    saved_at: float = field(default_factory=time.monotonic)

    @property
    def is_save_due(self) -> bool:
        """Whether ``save_every_minutes`` have passed since the last saving."""
        return 0 < 60 * self.config.save_every_minutes <= time.monotonic() - self.saved_at

    def save(self) -> None:
        """Write last.pt; the one before it stays as before_last.pt.

        Raises:
            WriteError: the file cannot be written.
        """
        content = {
            "format": _FORMAT,
            "schema": _SCHEMA,
            "state": asdict(self.state),
            "config": self.config.to_dict(),
            "data": self.fingerprint,
            "network": self.model.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        with suppress(OSError):  # a folder that cannot be written to is reported by the next line
            (self.folder / LAST).replace(self.folder / BEFORE_LAST)
        save_tensors(self.folder / LAST, content)
        self.saved_at = time.monotonic()

    def resume(self) -> bool:
        """Restore the run in ``folder``; False where there is none, or it is not to be resumed.

        Raises:
            CheckpointError: no state can be read, or the newest one is of other settings or other data.
        """
        files = [self.folder / name for name in (LAST, BEFORE_LAST) if (self.folder / name).is_file()]
        if self.config.resume == "never" or not files:
            return False
        content, path = _newest_sound(files)
        self._require_same(content)
        try:
            state = GroundingState(**content["state"])
            state.best = (float(state.best[0]), float(state.best[1]))
            self.model.network.load_state_dict(content["network"])
            self.optimizer.load_state_dict(content["optimizer"])
            self.scaler.load_state_dict(content["scaler"])
        except (RuntimeError, ValueError, TypeError, KeyError, IndexError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"{str(path)!r} does not fit this run: {reason}; --resume never") from error
        self.state = state
        say(f"continuing {path}: {counted(state.epoch, 'epoch')} done, step {state.step}")
        return True

    def _require_same(self, content: dict[str, Any]) -> None:
        """Refuse a state of other settings or other data."""
        earlier, own = content["config"], self.config.to_dict()
        changed = [
            f"{name} was {earlier[name]!r} and is {value!r}"
            for name, value in own.items()
            if name not in FREE_ON_RESUME and earlier.get(name, value) != value
        ]
        if changed:
            raise CheckpointError(
                f"the run in {str(self.folder)!r} has other settings: {', '.join(changed)}. Use its own, or "
                "--resume never"
            )
        if content["data"] != self.fingerprint:
            raise CheckpointError(
                f"the data have changed since the run in {str(self.folder)!r} was stopped; restore them, or "
                "--resume never"
            )


def _newest_sound(files: list[Path]) -> tuple[dict[str, Any], Path]:
    """The newest state that can be read; a damaged one before it is named."""
    *newer, oldest = files
    for path in newer:
        try:
            return _read_state(path), path
        except CheckpointError as error:
            say(f"warning: {error}. The state before it is used")
    return _read_state(oldest), oldest


def _read_state(path: Path) -> dict[str, Any]:
    content = load_tensors(path)
    if (
        not isinstance(content, dict)
        or (content.get("format"), content.get("schema")) != (_FORMAT, _SCHEMA)
        or not all(isinstance(content.get(name), kind) for name, kind in _PARTS.items())
        or not set(content["state"]) <= {one.name for one in fields(GroundingState)}
    ):
        raise CheckpointError(f"{str(path)!r} is no state of a grounding run; use another checkpoint_dir")
    return content
