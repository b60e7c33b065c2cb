"""Programs run in processes that are forked from one which has loaded the libraries and done nothing else.

Loading torch takes seconds of a core, and some tests start a program ten times. A forked process has an id, signals,
files and an exit code of its own like any other. What it lacks is a fresh interpreter: starts of ``python`` and of
``torchrun`` themselves are tested with real ones. And its pictures are blank, as drawing takes half of the time of a
small run.
"""

import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

_LOADED = multiprocessing.get_context("forkserver")
# What a run imports, those included that it imports late: torch loads its compiler with the first optimizer.
_PRELOADED = [
    "sat_vg.backbone_finetuning.training.run", "sat_vg.grounding.training", "torch.utils.tensorboard",
    "tensorboard.plugins.hparams.plugin_data_pb2", "torch._dynamo", "torch.distributed.fsdp",
    "torch.nn.parallel.distributed", "torchvision.io", "matplotlib.figure",
]  # fmt: skip


def save_blank(figure: object, file: IO[bytes], **options: object) -> None:
    """In place of ``Figure.savefig``: a white picture."""
    from PIL import Image

    Image.new("RGB", (400, 300), "white").save(file, "PNG")


def blank_records(setattr: Callable[[type, str, object], None] = setattr) -> None:
    """From now on the record of a run shows white pictures in place of those that it is given."""
    from PIL import Image

    from sat_vg.backbone_finetuning.training.tracking import FileTracker

    record = FileTracker.figure

    def figure(tracker: FileTracker, name: str, drawn: object, step: int) -> None:
        record(tracker, name, Image.new("RGB", (400, 300), "white"), step)

    setattr(FileTracker, "figure", figure)


def _run(program: str, arguments: list[str], folder: Path, environment: dict[str, str], out: Path, err: Path) -> None:
    os.setsid()
    os.chdir(folder)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    multiprocessing.set_start_method(None, force=True)  # workers are started as in any other process
    import torch

    torch.set_num_threads(1)  # what OMP_NUM_THREADS says where torch is loaded after it is set
    blank_records()
    sys.argv = [program, *arguments]
    if program.endswith(".py"):
        sys.path.insert(0, str(Path(program).parent))
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)


class Forked:
    """What is used of ``subprocess.Popen``, for a forked process in a session of its own.

    Args:
        program: a module, as after ``python -m``, or the path of a script.
        arguments: its arguments.
        folder: the working folder.
        environment: all of it.
        out: an existing file that standard output is appended to.
        err: the same for standard error.
    """

    def __init__(
        self, program: str, arguments: list[str], folder: Path, environment: dict[str, str], out: Path, err: Path
    ) -> None:
        _LOADED.set_forkserver_preload(_PRELOADED)
        self._process = _LOADED.Process(target=_run, args=(program, arguments, folder, environment, out, err))
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


class ForkedRanks:
    """Forked processes that find each other by the variables and the store that ``torchrun`` gives them.

    As by torchrun, a signal goes to each of them, and where one fails the others are ended, unless they end by
    themselves within seconds, as those do that write a state; none is started again.
    """

    def __init__(
        self, count: int, program: str, arguments: list[str], folder: Path, environment: dict[str, str], out: Path
    ) -> None:
        from torch.distributed import TCPStore

        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        shared = {
            "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": self._store.port, "TORCHELASTIC_USE_AGENT_STORE": "True",
        }  # fmt: skip
        self._ranks = []
        for rank in range(count):
            own = {name: str(value) for name, value in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()}
            self._ranks.append(Forked(program, arguments, folder, {**environment, **own}, out, out))

    def poll(self) -> int | None:
        """The first code that is not 0, or None while one of them runs."""
        codes = [rank.poll() for rank in self._ranks]
        return None if None in codes else next(filter(None, codes), 0)

    def wait(self, seconds: float) -> int:
        until, ends_others = time.monotonic() + seconds, None
        while (code := self.poll()) is None and time.monotonic() < until:
            if ends_others is None and any(rank.poll() for rank in self._ranks):
                ends_others, until = time.monotonic() + 10, time.monotonic() + 40
            elif ends_others is not None and time.monotonic() > ends_others:
                ends_others = float("inf")
                self.send_signal(signal.SIGTERM)
            time.sleep(0.05)
        if code is None:
            self.kill()
            raise TimeoutError("processes that did not end were killed")
        return code

    def send_signal(self, number: int) -> None:
        for rank in self._ranks:
            if rank.poll() is None:
                rank.send_signal(number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
