"""Worker processes that read images: how many, what signals do to them, and what it means when one fails."""

import multiprocessing
import os
import re
import signal
import threading
from dataclasses import dataclass

import torch

from sat_vg.backbone_finetuning.utils.stop_signals import STOP_SIGNALS


@dataclass(frozen=True)
class Workers:
    """The processes that decode images."""

    count: int  # processes; 0: the training process itself
    device: torch.device  # where batches go
    # seconds to wait for a batch before RuntimeError, which ``why_loading_failed`` explains; 0: for ever
    timeout: int = 0


def leave_signals_to_the_parent(worker_id: int) -> None:
    """Let a worker outlive Ctrl-C and what schedulers send to all processes, so that the step can be finished."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # blocked ones are not ignored, but wait
        signal.pthread_sigmask(signal.SIG_UNBLOCK, set(STOP_SIGNALS) - {signal.SIGTERM})
        threading.Thread(target=_obey_the_parent, args=(os.getppid(),), daemon=True).start()


def _obey_the_parent(starter: int) -> None:
    """End this worker with the process that started it, or when its loader says so."""
    parent = multiprocessing.parent_process()
    obeyed = {starter, parent.pid if parent is not None else starter}
    while os.getppid() == starter:
        asked = signal.sigtimedwait({signal.SIGTERM}, 1.0)
        if asked is not None and asked.si_pid in obeyed:
            break
    os._exit(0)


def why_loading_failed(error: RuntimeError) -> str | None:
    """What an error of a loader means and what to do about it; None if it is none of a loader's.

    The loader of torch raises plain RuntimeErrors, which only their texts tell apart.
    """
    text = str(error)
    if "DataLoader timed out" in text:
        seconds = re.search(r"after ([\d.]+) seconds", text)
        return (
            f"the worker processes handed over no batch for {seconds.group(1) if seconds else 'many'} seconds. The "
            "disk or network share of the images may hang; if it is only slow, raise --loader_timeout (0: no limit)"
        )
    if "shared memory" in text or "bus error" in text.lower():
        return (
            "a worker process found no room in the shared memory (/dev/shm) to hand over a batch. Enlarge it (docker "
            "run --shm-size=8g), or use a smaller --batch_size, or --num_workers 0"
        )
    if "received 0 items of ancdata" in text or "Too many open files" in text:
        return "there are too many open files; raise the limit (ulimit -n 65536), or use fewer --num_workers"
    if "DataLoader worker" in text:
        first = text.splitlines()[0].strip()
        return (
            f"a worker process that decodes images died ({first}). Killed: the memory is used up, so use fewer "
            "--num_workers or smaller images (dmesg tells). Bus error: the shared memory (/dev/shm) is full, so "
            "enlarge it (docker run --shm-size=8g). --num_workers 0 needs neither"
        )
    return None
