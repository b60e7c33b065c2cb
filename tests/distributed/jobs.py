"""A training in several real processes in a folder of its own."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from conftest import environment
from forks import Forked, ForkedRanks

PROGRAMS = ("traced_training", "forking_agent", "many_runs")
TRACED, AGENT, MANY = (Path(__file__).with_name(f"{name}.py") for name in PROGRAMS)
# No batch norm, whose statistics would be those of each process's own images.
FLAGS = [
    "--backbone", "squeezenet1_1", "--pretrained", "false", "--image_size", "32", "--batch_size", "6",
    "--mixed_precision", "false", "--mixup_alpha", "0.4", "--warmup_epochs", "0", "--early_stopping_patience", "0",
    "--num_workers", "0", "--log_every", "1",
]  # fmt: skip


# No batch norm and fp32: one process and two differ by rounding alone, and by a small rate this stays small.
PLAIN: dict[str, Any] = {
    "backbone": "squeezenet1_1", "pretrained": False, "image_size": 32, "batch_size": 6, "mixed_precision": False,
    "warmup_epochs": 0.0, "learning_rate": 1e-5, "num_workers": 0, "log_every": 1, "early_stopping_patience": 0,
}  # fmt: skip


def run_many(folder: Path, count: int, runs: dict[str, dict[str, Any]]) -> Path:
    """Trainings one after another in the same processes, each in a folder of its name below ``folder``."""
    folder.mkdir()
    (folder / "runs.json").write_text(json.dumps(runs))
    output = folder / "output.txt"
    output.touch()
    # With a cache of its own: features are built by as many processes.
    ranks = ForkedRanks(count, str(MANY), ["runs.json"], folder, environment(folder), output)
    try:
        code = ranks.wait(400)
    finally:
        ranks.kill()
    assert code == 0, output.read_text()
    return folder


def of_ranks(folder: Path, name: str) -> list[dict]:
    """What each process of ``run_many`` noted at the end of a run, by rank."""
    lines = [json.loads(line) for line in (folder / "ranks.jsonl").read_text().splitlines()]
    return sorted((line for line in lines if line["run"] == name), key=lambda line: line["rank"])


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "logs/metrics.jsonl").read_text().splitlines()]


def state_of(folder: Path) -> dict:
    return torch.load(folder / "ckpt/last.pt", weights_only=True)


class Job:
    """A training in so many processes, in a folder of its own; started again so often where one of them dies."""

    def __init__(self, folder: Path, count: int, images: Path, *more: object, restarts: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.trace, output = folder, folder / "trace.jsonl", folder / "output.txt"
        output.touch()
        flags = ["--dataset_path", images, *FLAGS, "--log_dir", "logs", "--checkpoint_dir", "ckpt", *more]
        arguments = [str(flag) for flag in flags]
        variables = environment(folder.parent, TRACE=str(self.trace))
        if restarts:
            arguments = [str(count), str(restarts), *arguments]
            self.process = Forked(str(AGENT), arguments, folder, variables, output, output)
        else:
            self.process = ForkedRanks(count, str(TRACED), arguments, folder, variables, output)

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
        return lines_of(self.folder)

    @property
    def state(self) -> dict:
        return state_of(self.folder)

    def wait(self, seconds: float = 240) -> int:
        return self.process.wait(seconds)

    def finish(self) -> "Job":
        assert self.wait() == 0, self.printed
        return self

    def wait_for_step(self, step: int, seconds: float = 120) -> None:
        until = time.monotonic() + seconds
        while max((line["step"] for line in self.steps), default=-1) < step:
            assert time.monotonic() < until and self.process.poll() is None, self.printed
            time.sleep(0.01)  # what follows has to come before the last step


@contextmanager
def started(folder: Path, images: Path) -> Iterator[Callable[..., Job]]:
    """Starts jobs in folders below ``folder``, and sees that nothing of them is left running."""
    jobs: list[Job] = []

    def run(name: str, count: int, *more: object, restarts: int = 0) -> Job:
        jobs.append(Job(folder / name, count, images, *more, restarts=restarts))
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
