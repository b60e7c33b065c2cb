"""One start of the training command, to be watched, stopped and killed.

Loading the libraries takes most of a start, and a test may start the command ten times. So there is a second way: a
process with an id, signals and files of its own, forked from one that has loaded the libraries and done nothing else.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LOADED = multiprocessing.get_context("forkserver")


def _train(folder: Path, out: Path, err: Path, environment: dict[str, str], arguments: list[str]) -> None:
    os.setsid()
    os.chdir(folder)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY), number)
    os.environ.update(environment)
    multiprocessing.set_start_method(None, force=True)  # workers are started as in any other process
    import torch

    from sat_vg.backbone_finetuning.train import main
    from sat_vg.backbone_finetuning.utils.stop_signals import ignore_from_now_on

    torch.set_num_threads(1)  # what OMP_NUM_THREADS says where torch is loaded after it is set
    code = main(arguments)
    ignore_from_now_on()
    sys.exit(code)


class _Forked:
    """What is used of ``subprocess.Popen``, for a forked process."""

    def __init__(self, *arguments: object) -> None:
        _LOADED.set_forkserver_preload(["sat_vg.backbone_finetuning.training.run"])
        self._process = _LOADED.Process(target=_train, args=arguments)
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def wait(self, seconds: float | None = None) -> int:
        self._process.join(seconds)
        if self._process.exitcode is None:
            raise TimeoutError(f"it still runs after {seconds} s")
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Life:
    """One start of the command in ``folder``, in a process group of its own.

    Args:
        command: ``[python, "-m", module, *flags]``, of the training command.
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
                self.process = _Forked(folder, self._out, self._err, environment, command[3:])

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
