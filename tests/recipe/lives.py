"""One start of a command, to be watched, stopped and killed."""

import os
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
