"""The signals that ask a run to stop: Ctrl-C, and what schedulers send before they take a machine away."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import NoReturn

EXIT_INTERRUPTED, EXIT_PREEMPTED = 130, 75  # 75 is EX_TEMPFAIL of sysexits.h: "try again later"

# Windows has no SIGUSR1.
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))

# coreutils' timeout and some schedulers send the same signal to the process and then to its group: one request.
ONE_REQUEST_S = 0.5


class StoppedBySignal(KeyboardInterrupt):
    """One of ``STOP_SIGNALS`` arrived where there was nothing to finish first."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped at once by {signal.Signals(number).name}; what was saved before is untouched")
        self.number = number


def exit_code_of(number: int) -> int:
    """The exit code that says which kind of signal stopped a command; the same command goes on in both cases."""
    return EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_PREEMPTED


@contextmanager
def handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let ``handler`` take the stop signals; outside the main thread, where Python allows no handlers, nothing."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS} if in_main_thread else {}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, signal.SIG_DFL if earlier is None else earlier)


@contextmanager
def held_back() -> Iterator[None]:
    """Hold the stop signals back in this thread, and in processes that it starts, until these unblock them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class StopAtOnce:
    """Handles signals by raising ``StoppedBySignal``, once for those that come in one go.

    Attributes:
        is_over: set once the command has ended.
    """

    def __init__(self) -> None:
        self.is_over = False
        self._raised_at = -ONE_REQUEST_S

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        now = time.monotonic()
        if not self.is_over and now - self._raised_at >= ONE_REQUEST_S:
            self._raised_at = now
            raise StoppedBySignal(number)


def leave_at_once(number: int, frame: FrameType | None) -> NoReturn:
    """Handle a signal by ending the process: while libraries are imported an exception might not get through."""
    sys.stderr.write(f"{StoppedBySignal(number)}\n")
    sys.stderr.flush()
    os._exit(exit_code_of(number))


def ignore_from_now_on() -> None:
    """For a process that has done its work and is about to end with its exit code."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class StopRequested(Exception):
    """The processes of a training have agreed to stop, as one of them got a signal; the loop saves the state."""


class InterruptRequest:
    """Within this context the first Ctrl-C, SIGTERM or SIGUSR1 sets ``requested``; a second one stops at once.

    Signals within half a second of the first one count as the same: some senders signal a process twice.

    Attributes:
        requested: whether a signal has come.
        number: which one.
    """

    def __init__(self) -> None:
        self.requested = False
        self.number: int = signal.SIGINT
        self._first_at = 0.0
        self._handlers = ExitStack()

    @property
    def name(self) -> str:
        """The signal's name, as users know it."""
        return "Ctrl-C" if self.number == signal.SIGINT else signal.Signals(self.number).name

    def __enter__(self) -> "InterruptRequest":
        self._handlers.enter_context(handling(self._note))
        return self

    def __exit__(self, *error: object) -> None:
        self._handlers.close()

    def note(self, number: int) -> None:
        """Take over the signal that another process of the training got."""
        self.requested, self.number = True, number

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.requested:
            self.requested, self.number, self._first_at = True, number, now
        elif now - self._first_at >= ONE_REQUEST_S:
            raise StoppedBySignal(number)
