"""Where a run's time goes: the parts of its steps, as a table and as a trace for a browser."""

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Protocol

import torch

from sat_vg.backbone_finetuning.data.loading.loaders import Batch
from sat_vg.backbone_finetuning.reports.tables import text_table
from sat_vg.backbone_finetuning.utils.safe_files import write_text

TRACE, TABLE = "profile_trace.json", "profile.txt"
_MOST_EVENTS = 200_000


class Profiler(Protocol):
    """Measures where a run's time goes."""

    def span(self, name: str) -> AbstractContextManager[None]:
        """Context of a named part of the work; parts do not overlap."""

    def waiting(self, batches: Iterable[Batch]) -> Iterable[Batch]:
        """The batches, with the time that each was waited for."""

    def write(self, folder: Path) -> str | None:
        """Write table and trace; returns the table, if there is one."""


class NullProfiler(Profiler):
    """Measures nothing."""

    def span(self, name: str) -> AbstractContextManager[None]:
        """An empty context."""
        return nullcontext()

    def waiting(self, batches: Iterable[Batch]) -> Iterable[Batch]:
        """The batches as they are."""
        return batches

    def write(self, folder: Path) -> str | None:
        """Nothing to write."""
        return None


class StepProfiler(Profiler):
    """Takes the time of every named stretch, for which it waits for the device, so the run is a little slower.

    Args:
        device: what is waited for.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._began = time.perf_counter()
        self._totals: dict[str, tuple[int, float]] = {}
        self._events: list[tuple[str, float, float]] = []

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """A stretch of work by name; stretches do not lie within one another."""
        begin = self._now()
        try:
            yield
        finally:
            self._note(name, begin)

    def waiting(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Batches as they come, and how long each was waited for."""
        iterator = iter(batches)
        while True:
            begin = self._now()
            batch = next(iterator, None)
            if batch is None:
                return
            self._note("wait for data", begin)
            yield batch

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        elif self._device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()

    def _note(self, name: str, begin: float) -> None:
        seconds = self._now() - begin
        count, total = self._totals.get(name, (0, 0.0))
        self._totals[name] = (count + 1, total + seconds)
        if len(self._events) < _MOST_EVENTS:
            self._events.append((name, begin - self._began, seconds))

    def table(self) -> str:
        """Seconds, share and mean of every stretch; what lies between them is ``other``."""
        whole = time.perf_counter() - self._began
        rows = sorted(self._totals.items(), key=lambda entry: -entry[1][1])
        rest = whole - sum(seconds for _, (_, seconds) in rows)
        lines: list[tuple[object, ...]] = [
            (name, count, f"{seconds:.2f}", f"{100 * seconds / whole:.1f}", f"{1000 * seconds / count:.2f}")
            for name, (count, seconds) in rows
        ]
        lines.append(("other", "", f"{rest:.2f}", f"{100 * rest / whole:.1f}", ""))
        return text_table(("where the time went", "times", "seconds", "%", "ms each"), lines)

    def write(self, folder: Path) -> str:
        """Write the table and a trace that chrome://tracing and Perfetto open; returns the table."""
        events = [
            {"name": name, "ph": "X", "ts": round(1e6 * begin, 1), "dur": round(1e6 * seconds, 1), "pid": 0, "tid": 0}
            for name, begin, seconds in self._events
        ]
        table = self.table()
        write_text(folder / TRACE, json.dumps({"traceEvents": events}) + "\n")
        write_text(folder / TABLE, table + "\n")
        return table
