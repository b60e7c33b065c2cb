"""When a state is saved in the middle of an epoch."""

import time


class SaveSchedule:
    """Says whether a save is due; epochs' ends have their own rule.

    Args:
        every_steps: optimizer steps of the run between two saves; 0: not by steps.
        every_seconds: since the last save of whatever kind; 0: not by time.
    """

    def __init__(self, every_steps: int, every_seconds: float) -> None:
        self._every_steps, self._every_seconds = every_steps, every_seconds
        self._last = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Whether the state after ``step`` steps is to be saved now."""
        by_steps = self._every_steps > 0 and step % self._every_steps == 0
        return by_steps or 0 < self._every_seconds <= time.monotonic() - self._last

    def note_save(self) -> None:
        """Count the time from now."""
        self._last = time.monotonic()
