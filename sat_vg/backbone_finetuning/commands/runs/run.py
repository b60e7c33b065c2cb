"""The runs below a folder: their state, their best epoch, and how to go on with them."""

import json
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sat_vg.backbone_finetuning.commands.runs.cli import RunsOptions
from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.configs.plain_values import as_flags
from sat_vg.backbone_finetuning.reports.tables import text_table
from sat_vg.backbone_finetuning.training.checkpoint import LAST, read_run
from sat_vg.backbone_finetuning.training.metric_lines import METRICS, read_metric_lines
from sat_vg.backbone_finetuning.training.phases import total_epochs
from sat_vg.backbone_finetuning.training.run_identity import config_of_run
from sat_vg.backbone_finetuning.utils.errors import CheckpointError, ConfigError, DataError
from sat_vg.backbone_finetuning.utils.folder_lock import is_in_use
from sat_vg.backbone_finetuning.utils.home_paths import expand_home
from sat_vg.backbone_finetuning.utils.printable import one_line
from sat_vg.backbone_finetuning.utils.terminal import progress, say

_DEEPEST = 5
_HEADER = ("run", "state", "epochs", "best", "at", "train loss", "val loss", "gap", "minutes")


@dataclass(frozen=True)
class RunRow:
    """A run as the table shows it.

    Attributes:
        run: folder of its checkpoints, as found.
        state: ``running``, ``stopped``, ``finished`` or ``damaged``.
        saved: when its state was last written, local time.
        epochs: epochs done.
        num_epochs: epochs of all phases.
        metric: name of what "best" goes by; None of a damaged run, as all below.
        best: its best value.
        best_epoch: the epoch that had it.
        train_loss: mean training loss of that epoch; None where the log lost it or nothing was trained.
        val_loss: validation loss of that epoch.
        gap: ``val_loss - train_loss``.
        minutes: of training, validation and pictures left out.
        go_on: the command that goes on with it; None where it has finished.
        error: why its state cannot be read.
    """

    run: str
    state: str
    saved: str
    epochs: int = 0
    num_epochs: int = 0
    metric: str | None = None
    best: float | None = None
    best_epoch: int | None = None
    train_loss: float | None = None
    val_loss: float | None = None
    gap: float | None = None
    minutes: float | None = None
    go_on: str | None = None
    error: str | None = None


def show_runs(options: RunsOptions) -> list[RunRow]:
    """Print the runs below a folder, the newest first; raises as ``list_runs``."""
    rows = list_runs(options.folder)
    if options.json:
        say(json.dumps({"runs": [asdict(row) for row in rows]}, indent=1))
        return rows
    say(text_table(_HEADER, [_cells(row) for row in rows], left=(0, 1)))
    for row in rows:
        if row.error is not None:
            say(f"\n{one_line(row.run)}: {row.error}")
        elif row.go_on is not None and row.state == "stopped":
            say(f"\nto go on with {one_line(row.run)}:\n  {row.go_on}")
    return rows


def list_runs(folder: str | Path = ".") -> list[RunRow]:
    """The runs whose checkpoints lie up to five levels below a folder, the newest first. Raises DataError for 0."""
    root = expand_home(str(folder))
    if not root.is_dir():
        raise DataError(f"there is no folder {str(folder)!r}; give the one that your runs lie in")
    found = sorted(_checkpoint_folders(root), key=lambda each: -_saved_at(each))
    if not found:
        raise DataError(
            f"no run lies in {str(folder)!r} or up to {_DEEPEST} folders below it: none holds a {LAST}, which a "
            "training writes into its checkpoint_dir"
        )
    return [_row_of(each) for each in progress(found, desc="runs", unit="run")]


def _checkpoint_folders(root: Path) -> Iterator[Path]:
    for folder, below, files in os.walk(root):
        path = Path(folder)
        is_deepest = len(path.relative_to(root).parts) >= _DEEPEST
        # Runs that were moved aside lie in earlier_run_1 and so on; their own table is `sat-vg runs` of that folder.
        below[:] = [] if is_deepest else [n for n in below if not n.startswith((".", "earlier_run_"))]
        if LAST in files:
            yield path


def _saved_at(folder: Path) -> float:
    """When its state was last written; of a link that leads nowhere, when that was made; 0: it is gone by now."""
    for status in ((folder / LAST).stat, (folder / LAST).lstat):
        with suppress(OSError):
            return status().st_mtime
    return 0.0


def _row_of(folder: Path) -> RunRow:
    path = folder / LAST
    saved = datetime.fromtimestamp(_saved_at(folder)).isoformat(" ", "seconds")
    try:
        content = read_run(path)
        if "fusion_layers" in content["config"]:
            return _row_of_grounding(folder, saved, content)
        config = config_of_run(content, path)
    except CheckpointError as error:
        return RunRow(str(folder), "damaged", saved, error=str(error))
    state = content["state"]
    epochs = _ended_epochs(folder, config)
    best = next((row for row in epochs if row["epoch"] == state.get("best_epoch")), None)
    train_loss = float(best["train_loss"]) if best is not None and best["step"] else None
    val_loss = state.get("best_loss")
    is_running, has_finished = is_in_use(folder), bool(state.get("finished"))
    return RunRow(
        run=str(folder),
        state="running" if is_running else "finished" if has_finished else "stopped",
        saved=saved,
        epochs=state["epoch"],
        num_epochs=total_epochs(config.strategy, config.num_epochs, config.probe_solver == "exact", config.wise_ft),
        metric=config.early_stopping_metric or "val_accuracy",
        best=state.get("best_value"),
        best_epoch=state.get("best_epoch"),
        train_loss=train_loss,
        val_loss=val_loss,
        gap=None if train_loss is None or val_loss is None else val_loss - train_loss,
        minutes=sum(row["seconds"] for row in epochs) / 60 if epochs else None,
        # Begun with --resume never, it would begin anew.
        go_on=None if has_finished else shlex.join(["sat-vg", "train", *config.as_flags(leave_out=("resume",))]),
    )


def _row_of_grounding(folder: Path, saved: str, content: Mapping[str, Any]) -> RunRow:
    """A run of ``sat-vg ground train``. Raises CheckpointError where its settings are not sound."""
    from sat_vg.grounding.config import GroundingConfig  # which stands above this package

    try:
        config = GroundingConfig(**content["config"])
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{str(folder / LAST)!r} holds settings that no run can have: {error}") from error
    state, values, usual = content["state"], config.to_dict(), GroundingConfig(data=config.data).to_dict()
    words = ["sat-vg", "ground", "train", *([] if config.data is None else ["--data", config.data])]
    is_set = {name for name, value in values.items() if name != "resume" and value not in (None, usual[name])}
    words += as_flags({name: value for name, value in values.items() if name in is_set})
    return RunRow(
        run=str(folder),
        state="running" if is_in_use(folder) else "finished" if state["finished"] else "stopped",
        saved=saved,
        epochs=state["epoch"],
        num_epochs=config.total_epochs,
        metric="val_pr@0.5",
        best=state["best_value"],
        best_epoch=state["best_epoch"],
        go_on=None if state["finished"] else shlex.join(words),
    )


def _ended_epochs(folder: Path, config: FinetuneConfig) -> list[dict[str, Any]]:
    """The epochs in a run's log, which is looked for from where its checkpoints were put."""
    checkpoints, logs = Path(config.checkpoint_dir), expand_home(config.log_dir)
    parts = checkpoints.parts
    if not checkpoints.is_absolute() and folder.resolve().parts[-len(parts) :] == parts:
        logs = folder.resolve().parents[len(parts) - 1] / config.log_dir
    try:
        return read_metric_lines(logs / METRICS).ended_epochs
    except OSError:
        return []  # the table shows "-" for what only the log knows


def _cells(row: RunRow) -> tuple[str, ...]:
    def number(value: float | None, form: str) -> str:
        return "-" if value is None else form.format(value)

    is_share = row.metric != "val_loss"
    return (
        one_line(row.run),
        row.state,
        "-" if row.error else f"{row.epochs}/{row.num_epochs}",
        number(row.best, "{:.2%}" if is_share else "{:.4f}").replace("%", " %"),
        number(row.best_epoch, "epoch {}"),
        number(row.train_loss, "{:.4f}"),
        number(row.val_loss, "{:.4f}"),
        number(row.gap, "{:+.4f}"),
        number(row.minutes, "{:.1f}"),
    )
