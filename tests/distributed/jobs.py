"""A training in several real processes, started by torchrun in a folder of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from conftest import COLOURS, environment, write_image

TRACED = Path(__file__).with_name("traced_training.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
# No batch norm, whose statistics would be those of each process's own images.
FLAGS = [
    "--backbone", "squeezenet1_1", "--pretrained", "false", "--image_size", "32", "--batch_size", "6",
    "--mixed_precision", "false", "--mixup_alpha", "0.4", "--warmup_epochs", "0", "--early_stopping_patience", "0",
    "--num_workers", "0", "--log_every", "1",
]  # fmt: skip


def write_images(root: Path) -> Path:
    """Three classes of 9 + 3 images: batches of 5 and 6, so that shares are uneven."""
    for number, (name, colour) in enumerate(COLOURS.items()):
        for split, count, first in (("train", 9, 0), ("val", 3, 50)):
            for index in range(count):
                write_image(root / split / name / f"{index}.png", colour, 100 * number + first + index)
    return root


class Job:
    """A training in so many processes, in a folder of its own."""

    def __init__(self, folder: Path, count: int, images: Path, *more: object, torchrun: tuple[str, ...] = ()) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.trace = folder, folder / "trace.jsonl"
        flags = ["--dataset_path", images, *FLAGS, "--log_dir", "logs", "--checkpoint_dir", "ckpt", *more]
        launcher = [*TORCHRUN, "--standalone", "--nproc_per_node", str(count), *torchrun]
        self.output = (folder / "output.txt").open("a")
        self.process = subprocess.Popen(
            [*launcher, str(TRACED), *map(str, flags)],
            cwd=folder,
            env=environment(folder.parent, TRACE=str(self.trace)),
            stdout=self.output,
            stderr=subprocess.STDOUT,
        )

    @property
    def printed(self) -> str:
        return (self.folder / "output.txt").read_text()

    @property
    def tracebacks(self) -> list[str]:
        """Lines of tracebacks that lead through the package."""
        return [line for line in self.printed.splitlines() if "File " in line and "backbone_finetuning" in line]

    @property
    def steps(self) -> list[dict]:
        lines = self.trace.read_text().splitlines(keepends=True) if self.trace.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    @property
    def lines(self) -> list[dict]:
        return [json.loads(line) for line in (self.folder / "logs/metrics.jsonl").read_text().splitlines()]

    @property
    def state(self) -> dict:
        return torch.load(self.folder / "ckpt/last.pt", weights_only=True)

    def wait(self, seconds: float = 240) -> int:
        code = self.process.wait(seconds)
        self.output.close()
        return code

    def finish(self) -> "Job":
        assert self.wait() == 0, self.printed
        return self

    def wait_for_step(self, step: int, seconds: float = 120) -> None:
        until = time.monotonic() + seconds
        while max((line["step"] for line in self.steps), default=-1) < step:
            assert time.monotonic() < until and self.process.poll() is None, self.printed
            time.sleep(0.05)


@contextmanager
def started(folder: Path, images: Path) -> Iterator[Callable[..., Job]]:
    """Starts jobs in folders below ``folder``, and sees that nothing of them is left running."""
    jobs: list[Job] = []

    def run(name: str, count: int, *more: object, torchrun: tuple[str, ...] = ()) -> Job:
        jobs.append(Job(folder / name, count, images, *more, torchrun=torchrun))
        return jobs[-1]

    try:
        yield run
    finally:
        for job in jobs:
            if job.process.poll() is None:
                job.process.kill()
            for pid in processes_of(job.trace):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            job.process.wait(20)


def processes_of(trace: Path) -> list[int]:
    """Those that were started to write this file, those included that never came to a step."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it has ended, or is not ours
            if f"TRACE={trace}\0".encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def batches_of(steps: list[dict]) -> dict[int, list[int]]:
    """The images of each step, over all ranks, in order; a step that was taken twice counts once."""
    shares: dict[int, dict[int, list[int]]] = {}
    for line in steps:
        shares.setdefault(line["step"], {})[line["rank"]] = line["indices"]
    return {step: [index for rank in sorted(of) for index in of[rank]] for step, of in shares.items()}
