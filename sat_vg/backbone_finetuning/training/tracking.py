"""The record of a run: TensorBoard, metrics.jsonl and pictures, in ``log_dir``."""

import errno
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary

from sat_vg.backbone_finetuning.configs.finetune_config import FIELDS_FREE_ON_RESUME
from sat_vg.backbone_finetuning.reports.projector import Embedding, write_projector
from sat_vg.backbone_finetuning.training.event_files import EVENT_FILES, EventWriter
from sat_vg.backbone_finetuning.training.metric_lines import METRICS, MetricLines, read_metric_lines
from sat_vg.backbone_finetuning.utils.errors import WriteError
from sat_vg.backbone_finetuning.utils.printable import one_line
from sat_vg.backbone_finetuning.utils.safe_files import atomic_write, write_text
from sat_vg.backbone_finetuning.utils.terminal import say

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NO_CURVES = ("epoch", "step")  # a chart of what the other charts have on their axes
_COLUMNS_FIRST = ("backbone", "strategy", "learning_rate", "batch_size", "image_size")
# Of the PNG files, and of TensorBoard: its cards are 350 pixels wide and shrink pictures by leaving pixels out.
_PIXELS_PER_INCH, _CARD_PIXELS_PER_INCH, _CARD_WIDTH = 130, 56, 350
# What TensorBoard shows in one chart each; the tags are regular expressions.
_CHARTS = {
    "run": {
        "loss by epoch": ["Multiline", ["epoch/train_loss", "epoch/val_loss"]],
        "validation accuracy, F1 and mAP by epoch": [
            "Multiline",
            ["epoch/val_accuracy", "epoch/(macro|micro)_f1", "epoch/val_map"],
        ],
        "F1 by class": ["Multiline", ["f1_by_class/.*"]],
        # Of a run of a few steps, those that are logged are fewer than its epochs, or none.
        "learning rate": ["Multiline", ["(step|epoch)/learning_rate", "learning_rate_by_stage/.*"]],
        "norm of the last update / norm of the weights, by stage": ["Multiline", ["update_ratio/.*"]],
    }
}


class RunPosition(Protocol):
    """How far a run is.

    Attributes:
        epoch: finished epochs.
        step: optimizer steps taken.
        step_in_epoch: optimizer steps of the running epoch.
    """

    epoch: int
    step: int
    step_in_epoch: int


class Tracker(Protocol):
    """The record of a run.

    Attributes:
        is_empty: whether nothing of the run had been recorded before.
    """

    is_empty: bool

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, *error: object) -> None:
        """Close the record."""

    def numbers(self, numbers: Mapping[str, Any], step: int, group: str) -> None:
        """Record a line of numbers, ``group`` being ``step``, ``epoch`` or ``event``."""

    def curves(self, values: Mapping[str, float], step: int) -> None:
        """Record scalars."""

    def text(self, name: str, lines: Iterable[str], step: int = 0) -> None:
        """Record lines of text."""

    def figure(self, name: str, figure: "Figure | Image.Image", step: int) -> None:
        """Record a figure."""

    def charts(self) -> None:
        """Lay out charts of several curves."""

    def sync(self) -> None:
        """Bring everything onto the disk."""


class NullTracker(Tracker):
    """Records nothing; for the processes that train beside the one that writes."""

    is_empty = False

    def __exit__(self, *error: object) -> None:
        """Do nothing."""

    def numbers(self, numbers: Mapping[str, Any], step: int, group: str) -> None:
        """Do nothing."""

    def curves(self, values: Mapping[str, float], step: int) -> None:
        """Do nothing."""

    def text(self, name: str, lines: Iterable[str], step: int = 0) -> None:
        """Do nothing."""

    def figure(self, name: str, figure: "Figure | Image.Image", step: int) -> None:
        """Do nothing."""

    def charts(self) -> None:
        """Do nothing."""

    def sync(self) -> None:
        """Do nothing."""


class FileTracker(Tracker):
    """Writes the same numbers to TensorBoard and, one JSON object a line, to metrics.jsonl.

    Lines of a run that went on after ``state`` was saved are dropped first, so a resumed run leaves no doubles.
    TensorBoard can only drop whole steps, so it gets nothing but the lines' own numbers within an epoch: what else
    there is belongs to the end of an epoch, and is written anew with it, or to the beginning or end of the run.

    Args:
        log_dir: where everything goes; made if need be.
        state: where the run starts or goes on.
        in_every_epoch: name of a number that every entry at the end of an epoch has.

    Attributes:
        is_empty: whether nothing of the run had been recorded here before.
    """

    def __init__(self, log_dir: Path, state: RunPosition, in_every_epoch: str = "val_accuracy") -> None:
        self.log_dir = log_dir
        with self._writing():
            log_dir.mkdir(parents=True, exist_ok=True)
            of_this_step = _drop_lines_after(log_dir / METRICS, state, in_every_epoch)
            at_start, within_epoch = not (state.step or state.epoch), state.step_in_epoch > 0
            self.is_empty = at_start or not any(log_dir.glob(EVENT_FILES))
            # The running epoch's validation, which may have been written for this very step, has to go, and what the
            # step itself had written comes back from the lines. A new run purges too, though there is nothing yet:
            # TensorBoard takes the first purge of a run for its start and drops nothing.
            purge_step = state.step + (0 if within_epoch or at_start else 1)
            self._writer = EventWriter(log_dir, purge_step)
            self._lines = (log_dir / METRICS).open("a", encoding="utf-8")
            for entry in of_this_step if within_epoch else ():
                self._scalars(entry, state.step, "event" if "event" in entry else "step")

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):  # what could not be flushed was reported where it was written
            self._lines.close()
        with suppress(OSError):
            self._writer.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise WriteError(
                f"the log in {str(self.log_dir)!r} cannot be written ({error.strerror or error}). The checkpoints "
                "from before are untouched: make room and run the same command again"
            ) from error

    def numbers(self, numbers: Mapping[str, Any], step: int, group: str) -> None:
        """Write one line, and its numbers as scalars ``group/name``.

        Args:
            numbers: names and plain values; texts go to the line only.
            step: optimizer steps so far.
            group: ``step``, ``epoch`` or ``event``.
        """
        with self._writing():
            self._lines.write(json.dumps(dict(numbers), allow_nan=False) + "\n")
            self._lines.flush()
            self._scalars(numbers, step, group)
            if group == "epoch":
                self._writer.flush()

    def _scalars(self, numbers: Mapping[str, Any], step: int, group: str) -> None:
        for name, value in numbers.items():
            if name not in _NO_CURVES and isinstance(value, (int, float)):
                self._writer.add_scalar(f"{group}/{name}", value, step)

    def curves(self, values: Mapping[str, float], step: int) -> None:
        """Show scalars in TensorBoard alone; at the end of an epoch, before its state is saved."""
        with self._writing():
            for tag, value in values.items():
                self._writer.add_scalar(tag, value, step)

    def sync(self) -> None:
        """Bring everything onto the disk, so that no state is saved that is ahead of its record."""
        with self._writing():
            self._lines.flush()
            os.fsync(self._lines.fileno())
            self._writer.flush()

    def figure(self, name: str, figure: "Figure | Image.Image", step: int) -> None:
        """Show a figure in TensorBoard and keep its latest state as ``name.png``."""
        drawn, small = io.BytesIO(), io.BytesIO()
        scale = _CARD_PIXELS_PER_INCH / _PIXELS_PER_INCH
        if isinstance(figure, Image.Image):
            figure.save(drawn, "PNG", compress_level=2)
            scale = max(scale, min(1.0, _CARD_WIDTH / figure.width))  # a narrow one can be shown as it is
        else:
            figure.savefig(drawn, format="png", dpi=_PIXELS_PER_INCH, pil_kwargs={"compress_level": 2})
        with Image.open(drawn) as picture:
            width, height = (round(side * scale) for side in picture.size)
            picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS).save(small, "PNG")
        card = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=small.getvalue())
        with self._writing():
            with atomic_write(self.log_dir / f"{name}.png") as file:
                file.write(drawn.getvalue())
            summary = Summary(value=[Summary.Value(tag=f"pictures/{name}", image=card)])
            self._writer._get_file_writer().add_summary(summary, step)
            self._writer.flush()

    def ended_epochs(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl that end epochs, those from before a resume included."""
        return read_metric_lines(self.log_dir / METRICS).ended_epochs

    def text(self, name: str, lines: Iterable[str], step: int = 0) -> None:
        """Show lines in TensorBoard as they are: as code, which Markdown indents by four spaces."""
        with self._writing():
            self._writer.add_text(name, "".join(f"    {one_line(line)}\n" for line in lines), step)

    def charts(self) -> None:
        """Lay out charts of several curves, under "Custom Scalars"."""
        with self._writing():
            self._writer.add_custom_scalars(_CHARTS)

    def precision_recall(self, tag: str, labels: np.ndarray, probabilities: np.ndarray, step: int) -> None:
        """Show a curve of precision over recall.

        Args:
            tag: its name in TensorBoard.
            labels: bool ``[N]``.
            probabilities: ``[N]``, of being true.
            step: optimizer steps so far.
        """
        with self._writing():
            self._writer.add_pr_curve(tag, labels, probabilities, step)

    def embedding(self, embedding: Embedding) -> None:
        """Show vectors in TensorBoard's projector."""
        with self._writing():
            write_projector(self.log_dir, embedding)

    def hyperparameters(self, config: Mapping[str, Any], results: Mapping[str, float], step: int) -> None:
        """Enter the run into TensorBoard's table of hyperparameters.

        Args:
            config: the settings; those that do not change a run's course are left out.
            results: to compare runs by; shown as ``hparam/NAME``.
            step: optimizer steps so far.
        """
        from torch.utils.tensorboard.summary import hparams

        metrics = {f"hparam/{name}": value for name, value in results.items()}
        with self._writing():
            experiment, start, end = hparams(_columns(config), metrics)
            # SummaryWriter.add_hparams would begin another file of events.
            for summary in (_with_first_columns(experiment), start, end):
                self._writer._get_file_writer().add_summary(summary, step)
            self.curves(metrics, step)
            self._writer.flush()


def _columns(config: Mapping[str, Any]) -> dict[str, int | float | str]:
    """The settings that runs differ by, the most telling ones first; of paths the last name."""
    names = [name for name in config if name not in FIELDS_FREE_ON_RESUME | set(_COLUMNS_FIRST)]
    shown = {name: config[name] for name in (*_COLUMNS_FIRST, *names) if name in config}
    if shown.get("weights"):
        shown["weights"] = Path(shown["weights"]).name
    return {name: _cell(value) for name, value in shown.items()}


def _with_first_columns(experiment: Summary) -> Summary:
    """The table's columns with the most telling ones marked as differing: TensorBoard shows these first."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    plugin = experiment.value[0].metadata.plugin_data
    content = HParamsPluginData.FromString(plugin.content)
    for column in content.experiment.hparam_infos:
        column.differs = column.name in _COLUMNS_FIRST
    plugin.content = content.SerializeToString()
    return experiment


def _cell(value: Any) -> int | float | str:
    """A value as the table can hold it, which turns booleans into numbers."""
    if value is None:
        return "unset"
    return value if isinstance(value, (int, float, str)) and not isinstance(value, bool) else str(value).lower()


def _drop_lines_after(path: Path, state: RunPosition, in_every_epoch: str) -> list[dict[str, Any]]:
    """Drop what came after ``state``; returns the entries of its last step.

    Raises:
        OSError: the file cannot be read or written.
    """
    if not path.exists():
        _tell_of_lacking(path, state, set())
        return []
    if not path.is_file():
        raise OSError(errno.EINVAL, f"{METRICS} in it is no file")
    found = read_metric_lines(path)
    _tell_of_dropped(path, found)
    kept = [
        (line, entry)
        for line, entry in found.lines
        if (entry["epoch"] <= state.epoch if in_every_epoch in entry else entry["step"] <= state.step)
    ]
    if not found.dropped:
        _tell_of_lacking(path, state, {entry["epoch"] for _, entry in kept if in_every_epoch in entry})
    write_text(path, "".join(f"{line}\n" for line, _ in kept))
    return [entry for _, entry in kept if entry["step"] == state.step]


def _tell_of_lacking(path: Path, state: RunPosition, ended: set[int]) -> None:
    """Say where the ends of epochs are not there that the run has behind it."""
    lacking = [epoch for epoch in range(1, state.epoch + 1) if epoch not in ended]
    if lacking:
        which = f"epoch {lacking[0]}" if len(lacking) == 1 else f"{len(lacking)} epochs, the first being {lacking[0]}"
        say(f"warning: {path}: the end of {which} is not in it, though the run has come further; the curves lack it")


def _tell_of_dropped(path: Path, found: MetricLines) -> None:
    numbers = found.dropped
    if found.is_cut and numbers and len(numbers) == 1:
        return  # the line that was being written when the run was killed
    if numbers:
        shown = ", ".join(map(str, numbers[:10])) + (f" and {len(numbers) - 10} more" if len(numbers) > 10 else "")
        which = f"line {shown} is" if len(numbers) == 1 else f"lines {shown} are"
        say(f"warning: {path}: {which} damaged, and dropped; the curves have a gap there")
