"""A training in a process of its own: its memory is its own, and its end is not ours."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from sat_vg.backbone_finetuning.utils.stop_signals import handling

_LOOK_EVERY_S = 0.1
_MAX_REASON = 300  # characters


@dataclass(frozen=True)
class EndedTraining:
    """How a training process ended.

    Attributes:
        code: its exit code; negative: the signal that killed it.
        peak_bytes: the most memory that it, or one of its workers, held; None where the system does not tell.
        seconds: from start to end.
        stopped_by: the signal that asked us to stop meanwhile; it was passed on.
    """

    code: int
    peak_bytes: int | None
    seconds: float
    stopped_by: int | None


def run_training(arguments: Sequence[str], output: Path, on_line: Callable[[str], None]) -> EndedTraining:
    """Run the training command and wait for its end.

    Signals that ask this process to stop meanwhile are passed on to the training, which saves its state and ends.

    Args:
        arguments: of the training command.
        output: file that gets all that the training prints.
        on_line: called with each line that it prints, while it runs.
    """
    command = [sys.executable, "-m", "sat_vg.backbone_finetuning.train", *arguments]
    asked: list[int] = []
    started: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if started and started[0].returncode is None:
            started[0].send_signal(number)

    clock = time.perf_counter()
    with output.open("wb") as written, output.open("rb") as read, handling(pass_on):
        started.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=written, stderr=subprocess.STDOUT))
        for number in asked:  # what arrived before there was a process to pass it on to
            started[0].send_signal(number)
        code, peak = _wait(started[0], read, on_line)
    return EndedTraining(code, peak, time.perf_counter() - clock, asked[0] if asked else None)


def _wait(process: subprocess.Popen[bytes], read: BinaryIO, on_line: Callable[[str], None]) -> tuple[int, int | None]:
    """Wait for the end, handing on the lines; returns exit code and peak memory in bytes."""
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
            on_line(line.decode("utf-8", errors="replace"))
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
