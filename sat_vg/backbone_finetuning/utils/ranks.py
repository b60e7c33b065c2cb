"""The processes that train together, as ``torchrun`` starts them: their numbers and collectives.

One explicit context is handed to all that need it. A training in a single process has ``SingleProcess``, so no other
code asks how many processes there are.
"""

import io
import itertools
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from sat_vg.backbone_finetuning.utils.errors import ConfigError, LostRankError, OtherRankError
from sat_vg.backbone_finetuning.utils.terminal import speak_as

T = TypeVar("T")

# Decoding a large data set for the first time takes rank 0 hours, in which the others wait. A process that dies is
# noticed at once all the same: its connections close.
_LONGEST_WAIT = timedelta(hours=24)
_LOST = ("gloo", "Connection closed", "Connection reset", "Broken pipe", "NCCL", "ProcessGroup", "Socket Timeout")


@dataclass(frozen=True)
class Share:
    """Which part of what several processes divide is this one's.

    Attributes:
        rank: of the process, from 0.
        count: of the processes.
    """

    rank: int = 0
    count: int = 1

    def of_batch(self, batch: Sequence[T]) -> Sequence[T]:
        """Neighbours in a batch, cut between pairs: those that are mixed with each other stay together."""
        pairs = (len(batch) + 1) // 2
        begin, end = (2 * (pairs * rank // self.count) for rank in (self.rank, self.rank + 1))
        return batch[begin:end]

    def of_many(self, things: Sequence[T]) -> Sequence[T]:
        """Every ``count``-th thing."""
        return things[self.rank :: self.count]

    @property
    def stream(self) -> tuple[int, ...]:
        """What a seed is derived from besides, so that processes draw other numbers; the first draws as one alone."""
        return (self.rank,) if self.rank else ()


WHOLE = Share()


_meetings = itertools.count()  # of this process, which may train more than once


class Ranks(Protocol):
    """The processes of a training, as one of them sees them.

    Attributes:
        rank: of this process among all of them, from 0.
        count: of processes.
        local_rank: of this process among those of its machine.
        local_count: of processes on its machine.
    """

    rank: int
    count: int
    local_rank: int
    local_count: int

    @property
    def is_first(self) -> bool:
        """Whether this process has rank 0, which writes and draws."""
        return self.rank == 0

    @property
    def share(self) -> Share:
        """This process's share of what they divide."""
        return Share(self.rank, self.count)

    @property
    def on_machine(self) -> "Ranks":
        """Those on the same machine, among whom they share its disk."""

    def all_reduce_max(self, *numbers: int) -> list[int]:
        """Each number's maximum over the processes; collective."""

    def all_reduce_sum(self, *tensors: Tensor) -> None:
        """Sum tensors over the processes, in place; collective."""

    def all_gather(self, value: T) -> list[T]:
        """The value of each process, by rank; collective. Tensors cross on the CPU and stay there."""

    def broadcast_from_rank0(self, make: Callable[[], T]) -> T:
        """What rank 0 makes; the others wait for it, and get its tensors on the CPU; collective.

        Raises:
            OtherRankError: on the others, where rank 0 could not; there the error itself is raised.
        """

    def run_on_rank0(self, action: Callable[[], object]) -> None:
        """Let rank 0 do something that the others do not wait for."""
        if self.is_first:
            action()

    def in_turn(self, make: Callable[[], T]) -> T:
        """What each process makes, the first of the machine before the others, who find what it left on the disk."""


class SingleProcess(Ranks):
    """A training in a single process, for which all of this is nothing."""

    rank = local_rank = 0
    count = local_count = 1

    @property
    def on_machine(self) -> Ranks:
        """This process alone."""
        return self

    def all_reduce_max(self, *numbers: int) -> list[int]:
        """The numbers as they are."""
        return list(numbers)

    def all_reduce_sum(self, *tensors: Tensor) -> None:
        """Do nothing."""

    def all_gather(self, value: T) -> list[T]:
        """This process's value."""
        return [value]

    def broadcast_from_rank0(self, make: Callable[[], T]) -> T:
        """What this process makes."""
        return make()

    def in_turn(self, make: Callable[[], T]) -> T:
        """What this process makes."""
        return make()


class _HostPickler(pickle.Pickler):
    """Pickles tensors as CPU tensors: one of GPU 1 would be loaded onto GPU 1 by every reader."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor) and value.device.type != "cpu":
            return value.detach().cpu().__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        return NotImplemented


def _pickled(value: object) -> bytes:
    stream = io.BytesIO()
    _HostPickler(stream, pickle.HIGHEST_PROTOCOL).dump(value)
    return stream.getvalue()


def _unpickled(content: bytes) -> Any:
    return pickle.loads(content)  # noqa: S301 from a process of the same training


class DistributedProcess(Ranks):
    """A training in several processes.

    Args:
        group: for what the host decides, over gloo; gradients have the default group.
        rank: within the group.
        count: of its processes.
        machine: the processes of this machine; None: they are this group.
    """

    def __init__(
        self, group: dist.ProcessGroup, rank: int, count: int, machine: "DistributedProcess | None" = None
    ) -> None:
        self._group, self.rank, self.count, self._machine = group, rank, count, machine
        self.local_rank, self.local_count = (rank, count) if machine is None else (machine.rank, machine.count)

    @property
    def on_machine(self) -> Ranks:
        """Those on the same machine, among whom they share its disk."""
        return self if self._machine is None else self._machine

    def all_reduce_max(self, *numbers: int) -> list[int]:
        """Each number's maximum over the processes; collective."""
        values = torch.tensor([int(number) for number in numbers])
        dist.all_reduce(values, dist.ReduceOp.MAX, group=self._group)
        return [int(value) for value in values]

    def all_reduce_sum(self, *tensors: Tensor) -> None:
        """Add up tensors over the processes, in place; all of them get the sums."""
        assert self.count == dist.get_world_size(), "those of one machine have no group for tensors"
        for tensor in tensors:
            # The default group has a backend for each kind of device.
            dist.all_reduce(tensor)

    def all_gather(self, value: T) -> list[T]:
        """The value of each process, by rank; all of them get the list. Tensors cross on the CPU and stay there."""
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, _pickled(value), group=self._group)
        return [_unpickled(one) for one in values]

    def broadcast_from_rank0(self, make: Callable[[], T]) -> T:
        """What rank 0 makes; the others wait for it, and get its tensors on the CPU.

        Raises:
            OtherRankError: on the others, where rank 0 could not; there the error itself is raised.
        """
        made: list[T] = []
        sent: list[bytes | None] = [None]  # in place of what could not be made
        try:
            if self.is_first:
                made = [make()]
                sent = [_pickled(made[0])]
        finally:  # an error included, or the others would wait for ever
            dist.broadcast_object_list(sent, group=self._group, group_src=0)
        if sent[0] is None:
            raise OtherRankError("rank 0 could not go on; its message says why")
        result: T = made[0] if self.is_first else _unpickled(sent[0])
        return result

    def in_turn(self, make: Callable[[], T]) -> T:
        """What each process makes, the first of the machine before the others, who find what it left on the disk."""
        machine = self.on_machine
        if not machine.is_first:
            machine.broadcast_from_rank0(lambda: None)
            return make()
        made: list[T] = []
        machine.broadcast_from_rank0(lambda: made.append(make()))
        return made[0]


@contextmanager
def joined() -> Iterator[Ranks]:
    """The processes that ``torchrun`` started, this one among them; without torchrun this one alone.

    Raises:
        ConfigError: they do not find each other, or something else than torchrun has set its variables.
        LostRankError: another one died meanwhile.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield SingleProcess()
        return
    rank, count, local_rank, local_count = map(_of_torchrun, ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    speak_as(rank)
    ranks = _meet(rank, count, local_rank, local_count)
    try:
        yield ranks
        ranks.all_gather(None)  # none leaves before all have done their part
    except RuntimeError as error:
        if not is_lost_rank(error):
            raise
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise LostRankError(
            "another process of this training ended, so this one ends too; the message of that one says why. What "
            f"was saved before is untouched: the same command goes on. (Noticed by: {reason})"
        ) from error
    dist.destroy_process_group()


def _of_torchrun(name: str) -> int:
    value = os.environ.get(name, "")
    if not value.isdecimal():
        raise ConfigError(
            f"the environment says WORLD_SIZE = {os.environ['WORLD_SIZE']!r}, so several processes, but {name} = "
            f"{value!r}, which torchrun sets for each. Start the training by torchrun, or unset WORLD_SIZE to train "
            "with one process"
        )
    return int(value)


def _meet(rank: int, count: int, local_rank: int, local_count: int) -> DistributedProcess:
    try:
        store, _, _ = next(rendezvous("env://"))
        # torchrun may hand the same store to the processes that it starts again; in it are the addresses of the dead.
        attempt = f"sat_vg/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{count}/{next(_meetings)}"
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=dist.PrefixStore(attempt, store), rank=rank, world_size=count)
        group = _new_group(range(count))
        if local_count == count:
            return DistributedProcess(group, rank, count)
        # Every process has to make the groups of all machines, its own one among them.
        machines = [_new_group(range(first, first + local_count)) for first in range(0, count, local_count)]
    except (RuntimeError, ValueError) as error:  # no common class: DistError, and ValueError for a lacking variable
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise ConfigError(
            f"rank {rank} of {count} did not find the others at {place} ({reason}). Start all of them by torchrun, "
            "with the same --rdzv_endpoint on every machine, and see that they reach each other"
        ) from error
    return DistributedProcess(
        group, rank, count, DistributedProcess(machines[rank // local_count], local_rank, local_count)
    )


def _new_group(ranks: range) -> dist.ProcessGroup:
    """A group for what hosts decide; to those that are not in it, one that they do not use."""
    group: dist.ProcessGroup = dist.new_group(list(ranks), backend="gloo", timeout=_LONGEST_WAIT)  # type: ignore[assignment]
    return group


def is_lost_rank(error: BaseException) -> bool:
    """Whether an error of torch says that another process is gone. Gloo's have no class of their own."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _LOST)
