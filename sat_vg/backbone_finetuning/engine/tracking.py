"""The record of a run: TensorBoard, metrics.jsonl and pictures, in ``log_dir``."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from sat_vg.backbone_finetuning.engine.checkpoint import RunState
from sat_vg.backbone_finetuning.utils.errors import WriteError
from sat_vg.backbone_finetuning.utils.safe_files import write_text

METRICS = "metrics.jsonl"


class Tracker:
    """Writes the same numbers to TensorBoard and, one JSON object a line, to metrics.jsonl.

    Lines of a run that went on after ``state`` was saved are dropped first, so a resumed run leaves no doubles.

    Args:
        log_dir: where everything goes; made if need be.
        state: where the run starts or goes on.
    """

    def __init__(self, log_dir: Path, state: RunState) -> None:
        self.log_dir = log_dir
        with self._writing():
            log_dir.mkdir(parents=True, exist_ok=True)
            of_this_step = _drop_lines_after(log_dir / METRICS, state)
            # TensorBoard can only drop whole steps. The running epoch's validation, which may have been written for
            # this very step, has to go, and what the step itself had written comes back from the lines.
            within_epoch = state.step_in_epoch > 0
            purge_step = state.step + (0 if within_epoch else 1) if state.step else None
            self._writer = SummaryWriter(str(log_dir), purge_step=purge_step)
            self._lines = (log_dir / METRICS).open("a", encoding="utf-8")
            for entry in of_this_step if within_epoch else ():
                self._scalars(entry, state.step, "event" if "event" in entry else "step")

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
            if name != "step" and isinstance(value, (int, float)):
                self._writer.add_scalar(f"{group}/{name}", value, step)

    def sync(self) -> None:
        """Bring everything onto the disk, so that no state is saved that is ahead of its record."""
        with self._writing():
            self._lines.flush()
            os.fsync(self._lines.fileno())
            self._writer.flush()

    def figure(self, name: str, figure: Figure, step: int) -> None:
        """Show a figure in TensorBoard and keep its latest state as ``name.png``."""
        with self._writing():
            figure.savefig(self.log_dir / f"{name}.png", dpi=110)
            self._writer.add_figure(name, figure, step)
            self._writer.flush()

    def ended_epochs(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl that end epochs, those from before a resume included."""
        entries = map(json.loads, (self.log_dir / METRICS).read_text(encoding="utf-8").splitlines())
        return [entry for entry in entries if "val_accuracy" in entry]

    def text(self, name: str, text: str) -> None:
        """Show a text in TensorBoard."""
        with self._writing():
            self._writer.add_text(name, text)

    def hyperparameters(self, config: Mapping[str, Any], results: Mapping[str, float]) -> None:
        """Enter the run into TensorBoard's table of hyperparameters."""
        plain = {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in config.items()}
        with self._writing():
            self._writer.add_hparams(plain, {f"hparam/{k}": v for k, v in results.items()}, run_name=".")


def _drop_lines_after(path: Path, state: RunState) -> list[dict[str, Any]]:
    """Drop what came after ``state``; returns the entries of its last step."""
    if not path.exists():
        return []
    kept, of_this_step = [], []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue  # the line that was being written when the run was killed
        ends_epoch = "val_accuracy" in entry
        if (entry["epoch"] <= state.epoch) if ends_epoch else (entry["step"] <= state.step):
            kept.append(line + "\n")
            of_this_step += [entry] if entry["step"] == state.step else []
    write_text(path, "".join(kept))
    return of_this_step
