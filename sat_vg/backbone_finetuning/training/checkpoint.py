"""last.pt: everything that a run needs to resume exactly."""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

import sat_vg
from sat_vg.backbone_finetuning.training.checkpoint_checks import (
    require_none,
    require_sound_numbers,
    wrong_optimizer,
    wrong_scaler,
    wrong_tensors,
)
from sat_vg.backbone_finetuning.training.ema import NullAverage, WeightAverage
from sat_vg.backbone_finetuning.training.fsdp_tensors import gathered, parts_of_optimizer, parts_of_weights
from sat_vg.backbone_finetuning.training.run_identity import RunIdentity
from sat_vg.backbone_finetuning.training.wise_ft import NullStartWeights, StartWeights
from sat_vg.backbone_finetuning.utils.errors import CheckpointError
from sat_vg.backbone_finetuning.utils.ranks import Ranks, SingleProcess
from sat_vg.backbone_finetuning.utils.tensor_files import load_tensors, save_tensors
from sat_vg.backbone_finetuning.utils.terminal import say

FORMAT = "sat_vg.run"
_PARTS: dict[str, type] = {
    "state": dict, "network": dict, "optimizer": dict, "scaler": dict, "config": dict, "data_fingerprint": str,
    "preprocessing": dict,
}  # fmt: skip
SCHEMA = 1
# Fields of RunState that states of earlier versions lack.
_CAME_LATER = (
    "best_loss", "phase_best", "phase_reference", "recent_losses", "spikes", "skipped_steps", "skipped_in_a_row",
    "micro_batch_size", "wise_ft_share",
)  # fmt: skip
LAST = "last.pt"


@dataclass
class RunState:
    """Progress of a run, beside its tensors. Plain numbers; all random streams follow from them.

    Attributes:
        phase: index of the running phase.
        epoch: finished epochs, over all phases.
        epoch_in_phase: finished epochs of the running phase.
        step: optimizer steps taken.
        step_in_epoch: those of the running epoch.
        train_loss_sum: loss summed over the images of the running epoch so far.
        train_images: images of the running epoch so far.
        train_seconds: time spent on them.
        window_loss_sum: loss summed over the images since the last log entry.
        window_images: images since the last log entry.
        best_value: best validation metric of the run; None before the first validation.
        best_loss: validation loss of that epoch, which decides between equal values; None where it is not known.
        best_epoch: number of its epoch, from 1.
        phase_best: best validation metric of the running phase, by which the plateau schedule goes.
        phase_reference: the last one of the phase that was better than those before by ``min_delta``, for patience.
        epochs_without_improvement: since that one.
        plateau_factor: product of the plateau schedule's reductions.
        plateau_waited: epochs without a new ``phase_best`` since the last reduction.
        finished: whether the run has come to its end.
        recent_losses: mean losses of the last steps, the newest last; what a spike is measured against.
        spikes: losses of the running epoch that were reported as such.
        skipped_steps: steps of the running epoch that loss scaling left out.
        skipped_in_a_row: the same up to now without a sound step between, over epochs.
        micro_batch_size: images that went through the model at once in the last step; 0 before the first.
        wise_ft_share: of the trained weights in the mixture that was chosen; None before.
    """

    phase: int = 0
    epoch: int = 0
    epoch_in_phase: int = 0
    step: int = 0
    step_in_epoch: int = 0
    train_loss_sum: float = 0.0
    train_images: int = 0
    train_seconds: float = 0.0
    window_loss_sum: float = 0.0
    window_images: int = 0
    best_value: float | None = None
    best_loss: float | None = None
    best_epoch: int = 0
    phase_best: float | None = None
    phase_reference: float | None = None
    epochs_without_improvement: int = 0
    plateau_factor: float = 1.0
    plateau_waited: int = 0
    finished: bool = False
    recent_losses: list[float] = field(default_factory=list)
    spikes: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    micro_batch_size: int = 0
    wise_ft_share: float | None = None

    @property
    def begins_phase(self) -> bool:
        """Whether nothing of the running phase has been done yet."""
        return self.epoch_in_phase == self.step_in_epoch == 0

    def note_validation(
        self, value: float, loss: float, higher_is_better: bool, min_delta: float, wins_ties: bool = False
    ) -> bool:
        """Record a validation; returns whether it is the best of the run so far.

        Args:
            value: of the metric that defines "best".
            loss: the lower one is the better of two equal values.
            higher_is_better: of the metric.
            min_delta: for patience alone: what counts as an improvement must be larger.
            wins_ties: whether it is the best already where value and loss are equal to the best ones before.
        """
        sign = 1 if higher_is_better else -1
        self.phase_best, is_new = _better(value, self.phase_best, sign)
        self.plateau_waited = 0 if is_new else self.plateau_waited + 1
        self.phase_reference, is_new = _better(value, self.phase_reference, sign, min_delta)
        self.epochs_without_improvement = 0 if is_new else self.epochs_without_improvement + 1
        if self.best_value is not None:
            gain = sign * (value - self.best_value)
            # The loss is not known where a version of sat_vg without it began the run.
            less_loss = 0.0 if self.best_loss is None else self.best_loss - loss
            if (gain, less_loss) < (0, 0) or (gain == less_loss == 0 and not wins_ties):
                return False
        self.best_value, self.best_loss, self.best_epoch = value, loss, self.epoch + 1
        return True

    def reduce_on_plateau(self, patience: int, gamma: float) -> None:
        """Lower the plateau schedule's factor after ``patience`` epochs without a new best one of the phase."""
        if self.plateau_waited >= patience:
            self.plateau_factor *= gamma
            self.plateau_waited = 0

    def end_epoch(self) -> None:
        """Go on to the next epoch."""
        self.epoch += 1
        self.epoch_in_phase += 1
        self.step_in_epoch = self.train_images = self.spikes = self.skipped_steps = 0
        self.train_loss_sum = self.train_seconds = 0.0

    def end_phase(self, is_last: bool = False) -> None:
        """Go on to the next phase, which has its own best value, patience and plateaus.

        After the last one these stay, for a run that is later given more epochs.
        """
        self.phase += 1
        self.epoch_in_phase = 0
        if not is_last:
            self.phase_best = self.phase_reference = None
            self.epochs_without_improvement = self.plateau_waited = 0
            self.plateau_factor = 1.0

    def reopen(self, epochs_in_phase: int) -> None:
        """Go on with the last phase, of which so many epochs are done."""
        self.phase -= 1
        self.epoch_in_phase, self.finished = epochs_in_phase, False


def _better(value: float, before: float | None, sign: int, min_delta: float = 0.0) -> tuple[float, bool]:
    """The better of two values, and whether it is the new one, which must be better by more than ``min_delta``."""
    if before is None or sign * (value - before) > min_delta:
        return value, True
    return before, False


def _as_saved(state: dict[str, Any]) -> dict[str, Any]:
    return state


@dataclass(frozen=True)
class RunTensors:
    """The stateful objects of a run whose state is saved beside ``RunState``.

    Attributes:
        regroup: an optimizer's state as saved → with its parameters in the groups of ``optimizer``.
    """

    network: nn.Module
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    average: WeightAverage = field(default_factory=NullAverage)
    start_weights: StartWeights = field(default_factory=NullStartWeights)
    regroup: Callable[[dict[str, Any]], dict[str, Any]] = _as_saved


def save_run(
    folder: Path, state: RunState, tensors: RunTensors, identity: RunIdentity, keep: int, ranks: Ranks | None = None
) -> Path:
    """Write the state of a run; ``last.pt`` becomes another name of the new file.

    Args:
        folder: of the checkpoints.
        state: where the run stands.
        tensors: whose states are captured.
        identity: what a resume is checked against.
        keep: how many of the newest files stay.
        ranks: the processes that train together; collective: rank 0 writes, but each may hold a
            part of the weights; unset: this one alone.

    Raises:
        WriteError: the folder cannot be written to or the disk is full; the files from before are untouched.
    """
    ranks = ranks or SingleProcess()
    path = folder / f"step_{state.step:08d}.pt"
    content = {
        "format": FORMAT,
        "schema": SCHEMA,
        "version": sat_vg.__version__,
        "state": asdict(state),
        "network": gathered(tensors.network.state_dict(), ranks),
        "optimizer": gathered(tensors.optimizer.state_dict(), ranks),
        "scaler": tensors.scaler.state_dict(),
        "average": gathered(tensors.average.state_dict(), ranks),
        "origin": gathered(tensors.start_weights.state_dict(), ranks),
        "config": identity.config,
        "data_fingerprint": identity.data_fingerprint,
        "preprocessing": identity.preprocessing,
        "image_contents": identity.image_contents,
        "resumed_from": identity.resumed_from,
    }
    ranks.run_on_rank0(lambda: _write_run(path, content, keep))
    return path


def _write_run(path: Path, content: dict[str, Any], keep: int) -> None:
    save_tensors(path, content)
    _point_last_at(path)
    # By age, not by step: a run that went back to an earlier state leaves files of later steps behind.
    by_age = sorted(path.parent.glob("step_????????.pt"), key=lambda found: found.stat().st_mtime_ns)
    for old in [found for found in by_age if found != path][: -(keep - 1) or None]:
        old.unlink(missing_ok=True)


def _point_last_at(path: Path) -> None:
    """A hard link costs no space; where the file system has none, a link by name does."""
    temporary = path.with_name(f".{LAST}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        temporary.hardlink_to(path)
    except OSError:
        temporary.symlink_to(path.name)
    temporary.replace(path.with_name(LAST))


def read_run(path: Path) -> dict[str, Any]:
    """The content of a last.pt.

    Raises:
        CheckpointError: the file is missing, damaged, no run's state, or of another schema.
    """
    content = load_tensors(path)
    _require_run(content, path)
    return dict(content)


def _require_run(content: Any, path: Path) -> None:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{str(path)!r} is no last.pt of sat_vg, so no run can go on from it; check --resume")
    schema = content.get("schema")
    if type(schema) is not int or schema != SCHEMA:
        remedy = "upgrade to that" if type(schema) is int and schema > SCHEMA else "use that, or --resume never"
        raise CheckpointError(
            f"{str(path)!r} has schema {schema!r}; this sat_vg {sat_vg.__version__} reads {SCHEMA}. "
            f"It was written by sat_vg {content.get('version')!r}: {remedy}"
        )
    lacking = [name for name in _PARTS if not isinstance(content.get(name), _PARTS[name])]
    for name in ("image_contents", "resumed_from"):  # came with a later version
        texts = content.get(name, {})
        is_sound = isinstance(texts, dict) and all(isinstance(text, str) for text in (*texts, *texts.values()))
        lacking += [] if is_sound else [name]
    if lacking:
        raise CheckpointError(
            f"{str(path)!r} lacks {', '.join(lacking)}, so no run can go on from it; use another one"
        )
    try:
        require_sound_numbers(content, asdict(RunState()), _CAME_LATER)
    except CheckpointError as error:
        raise CheckpointError(f"{str(path)!r} cannot be gone on with: {error}") from None


def read_newest_sound(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest state in a folder that can be read: last.pt, or where it is damaged, one from before.

    Raises:
        CheckpointError: there are states, and none of them can be read; or the newest is no run's state or of another
            schema, which nothing but its owner can mend.
    """
    by_age = sorted(folder.glob("step_????????.pt"), key=lambda found: found.stat().st_mtime_ns, reverse=True)
    last = [folder / LAST] if os.path.lexists(folder / LAST) else []
    reasons, seen = [], set()
    for path in (*last, *by_age):
        inode = path.stat().st_ino if path.exists() else None
        if inode in seen:
            continue  # last.pt under its other name
        seen.add(inode)
        try:
            content = load_tensors(path)
        except CheckpointError as error:
            reasons.append(str(error))
            continue
        _require_run(content, path)
        for reason in reasons:
            say(f"warning: {reason}")
        if reasons:
            say(f"warning: going on with the state before, {path}; what came after it is trained once more")
        return path, content
    if reasons:
        raise CheckpointError(
            "no state of the run can be read:\n  " + "\n  ".join(reasons) + "\nPut back a copy of one of these "
            "files, or begin anew with --resume never (the old run is moved aside)"
        )
    return None


def restore_run(content: Mapping[str, Any], tensors: RunTensors) -> RunState:
    """Restore a run's state, after all of it was checked.

    Raises:
        CheckpointError: a part does not fit, or is nothing that a run saves; nothing was loaded then.
    """
    average, origin = content.get("average", {}), content.get("origin", {})  # came with a later version
    if content["config"].get("best_weights") == "trained":  # an earlier version kept an average that nothing used
        average = {}
    require_sound_numbers(content, asdict(RunState()), _CAME_LATER)
    optimizer = _regrouped(content["optimizer"], tensors)
    require_none(
        [
            *wrong_tensors("the network", content["network"], tensors.network.state_dict()),
            *wrong_optimizer(optimizer, tensors.optimizer),
            *wrong_tensors("the average", average, tensors.average.state_dict()),
            *(wrong_tensors("the start of the phase", origin, tensors.start_weights.own) if origin != {} else ()),
        ]
    )
    if tensors.scaler.is_enabled() and content["scaler"]:  # it was not, where the run was on another device
        require_none([*wrong_scaler(content["scaler"], tensors.scaler.state_dict())])
        tensors.scaler.load_state_dict(content["scaler"])
    network = parts_of_weights(content["network"], tensors.network.state_dict())
    tensors.network.load_state_dict(network, strict=True)
    tensors.optimizer.load_state_dict(parts_of_optimizer(optimizer, tensors.optimizer))
    tensors.average.load_state_dict(average)
    tensors.start_weights.load_state_dict(origin)
    known = {entry.name for entry in fields(RunState)}
    numbers = {name: value for name, value in content["state"].items() if name in known}
    if "phase_best" not in numbers and numbers["epoch_in_phase"]:  # came with a later version
        numbers["phase_best"] = numbers["phase_reference"] = numbers["best_value"]
    return RunState(**numbers)


def _regrouped(optimizer: dict[str, Any], tensors: RunTensors) -> dict[str, Any]:
    try:
        return tensors.regroup(optimizer)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"the checkpoint's optimizer does not hold the parameters of the model ({error!r}): use an earlier "
            "checkpoint"
        ) from error
