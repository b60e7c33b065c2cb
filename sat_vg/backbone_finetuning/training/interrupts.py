"""Stop signals as a request: the step is finished and saved before the run ends."""

import signal
import time
from contextlib import ExitStack
from types import FrameType, TracebackType

from sat_vg.backbone_finetuning.utils.stop_signals import ONE_REQUEST_S, StoppedBySignal, handling


class InterruptRequest:
    """Within this context the first Ctrl-C, SIGTERM or SIGUSR1 sets ``requested``; a second one stops at once.

    What comes within half a second of the first one belongs to it: some senders signal a process twice.

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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
