"""A training in a process of its own: its memory is its own, and its end is not ours."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from sat_vg.backbone_finetuning.utils.stop_signals import handling

_LOOK_EVERY_S = 0.1
_MAX_REASON = 300  # characters


@dataclass(frozen=True)
class EndedTraining:
    """How a training process ended."""

    code: int  # its exit code; negative: the signal that killed it
    # the most memory that it, or one of its workers, held; None where the system does not tell
    peak_bytes: int | None
    seconds: float  # from start to end
    stopped_by: int | None  # the signal that asked us to stop meanwhile; it was passed on


class TrainingProcess:
    """The training command in a process of its own, which begins with the first of its ``lines``.

    All that it prints goes into the file ``output``; ``ended`` is there once ``lines`` has come to its end.
    """

    ended: EndedTraining  # how it ended; there once ``lines`` has come to its end

    def __init__(self, arguments: Sequence[str], output: Path) -> None:
        self._command = [sys.executable, "-m", "sat_vg.backbone_finetuning.train", *arguments]
        self._output = output
        self._asked: list[int] = []
        self._started: list[subprocess.Popen[bytes]] = []

    def lines(self) -> Iterator[str]:
        """Run the command to its end; each line that it prints, while it runs.

        Signals that ask this process to stop meanwhile are passed on to the training, which saves its state and ends.
        """
        clock = time.perf_counter()
        with self._output.open("wb") as written, self._output.open("rb") as read, handling(self._pass_on):
            self._started.append(
                subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=written, stderr=subprocess.STDOUT)
            )
            for number in self._asked:  # what arrived before there was a process to pass it on to
                self._started[0].send_signal(number)
            code, peak = yield from _lines_until_end(self._started[0], read)
        asked = self._asked[0] if self._asked else None
        self.ended = EndedTraining(code, peak, time.perf_counter() - clock, asked)

    def stop(self) -> None:
        """Ask the training to save its state and end, as a scheduler would."""
        if self._started[0].returncode is None:
            self._started[0].send_signal(signal.SIGTERM)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._asked.append(number)
        if self._started and self._started[0].returncode is None:
            self._started[0].send_signal(number)


def _lines_until_end(
    process: "subprocess.Popen[bytes]", read: BinaryIO
) -> Generator[str, None, tuple[int, int | None]]:
    """The lines that a process prints until it ends; returns exit code and peak memory in bytes."""
    rest = b""
    code: int | None = None
    peak: int | None = None
    while code is None:
        time.sleep(_LOOK_EVERY_S)
        if hasattr(os, "wait4"):
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)  # macOS counts bytes
                process.returncode = code
        else:
            code = process.poll()
        *lines, rest = (rest + read.read()).split(b"\n")
        for line in lines:
            yield line.decode("utf-8", errors="replace")
    return code, peak


def why_it_failed(code: int, output: Path) -> str:
    """The reason in one line: the message of the error, or the last line of whatever else was printed."""
    text = output.read_text(encoding="utf-8", errors="replace") if output.exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [position for position, line in enumerate(lines) if line.startswith("error: ")]
    said = " ".join(lines[errors[-1] :]).removeprefix("error: ") if errors else (lines[-1] if lines else "")
    if code < 0:
        name = signal.Signals(-code).name
        hint = ": the memory was used up, or someone killed it" if name == "SIGKILL" else ""
        said = f"it was killed by {name}{hint}"
    shown = said or "it said nothing"
    return f"{shown[:_MAX_REASON]}{' …' if len(shown) > _MAX_REASON else ''} (exit code {code})"
