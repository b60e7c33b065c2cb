"""One start of a command, to be watched, stopped and killed."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from forks import Forked


class Life:
    """One start of the command in ``folder``, in a process group of its own.

    Args:
        command: ``[python, "-m", module, *flags]``.
        folder: made if need be; its outputs lie beside it.
        environment: of the process.
        is_fresh: a new interpreter, and no fork of one that has loaded the libraries.
    """

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str], is_fresh: bool) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.ckpt = folder, folder / "ckpt"
        self._out, self._err = (folder.parent / f"{folder.name}.{name}" for name in ("out", "err"))
        with self._out.open("w") as out, self._err.open("w") as err:
            if is_fresh:
                self.process = subprocess.Popen(
                    command, cwd=folder, env=environment, stdout=out, stderr=err, start_new_session=True
                )
            else:
                self.process = Forked(command[2], command[3:], folder, environment, self._out, self._err)

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def wait(self, seconds: float = 200) -> int:
        code = self.process.wait(seconds)
        assert "Traceback" not in self.err, self.err
        return code

    def until(self, condition: Callable[[], bool], seconds: float = 120, every: float = 0.002) -> bool:
        """Wait for a condition; False if the process ended before."""
        deadline = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < deadline, (self.out, self.err)
            time.sleep(every)
        return True

    def has_said(self, *starts: str) -> Callable[[], bool]:
        return lambda: any(line.startswith(starts) for line in self.out.splitlines())


@contextmanager
def none_left(lives: list[Life]) -> Iterator[None]:
    """End those that a failed test has left."""
    try:
        yield
    finally:
        for life in lives:
            if life.process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(life.process.pid, signal.SIGKILL)
        lives.clear()


def instants(life: Life, draw: random.Random) -> dict[str, Callable[[], object]]:
    """Ways to wait for an instant: spread over time, and within what is too short to be met by chance.

    They go by steps rather than by seconds, so that a quick machine does not come to the end of its run before them.
    """

    def steps() -> int:
        return max((int(path.stem.removeprefix("step_")) for path in life.ckpt.glob("step_*.pt")), default=0)

    def begun() -> int:
        life.until(life.has_said("device:"))
        return steps()

    def at_any_time() -> None:
        wanted = begun() + 2 * draw.randrange(3)  # every second step is saved
        life.until(lambda: steps() >= wanted)
        time.sleep(draw.uniform(0, 0.1))

    def early() -> None:
        begun()
        time.sleep(draw.uniform(0, 0.3))

    def while_writing(name: str) -> None:
        patience = begun() + 6  # a better model may never come
        life.until(lambda: any(life.ckpt.glob(f".{name}.*.tmp")) or steps() >= patience, every=0.0005)
        time.sleep(draw.uniform(0, 0.01))

    def in_validation() -> None:
        end = 6 * (begun() // 6 + 1)  # saved, and then validated
        life.until(lambda: steps() >= end)
        time.sleep(draw.uniform(0, 0.05))

    def in_preparation() -> None:
        life.until(life.has_said("data:"))
        time.sleep(draw.uniform(0, 0.4))

    return {
        "any": at_any_time,
        "early": early,
        "checkpoint": lambda: while_writing("step_*"),
        "best model": lambda: while_writing("best_model.pt"),
        "validation": in_validation,
        "preparation": in_preparation,
    }
