"""How much memory there is for this process: the machine's, or what its container or job was given of it."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sat_vg.backbone_finetuning.utils.control_groups import group_folders, number, read


class Memory(NamedTuple):
    """Memory in bytes.

    Attributes:
        total: of the machine, or the limit of the control group that this process is in.
        available: what could be taken without pushing others out.
    """

    total: int
    available: int


class _Files(NamedTuple):
    """Where a version of Linux's control groups says what; versions 1 and 2 may both be in use."""

    limit: str
    usage: str
    reclaimable: tuple[str, ...]


_VERSION_2 = _Files("memory.max", "memory.current", ("active_file", "inactive_file"))
_VERSION_1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file"))


def machine_memory(root: Path = Path("/")) -> Memory:
    """The memory that this process may use.

    Args:
        root: where ``proc`` and ``sys`` are.
    """
    machine = _machine(root / "proc/meminfo")
    groups = list(_groups(root))
    return Memory(
        min([machine.total, *(group.total for group in groups)]),
        max(0, min([machine.available, *(group.available for group in groups)])),
    )


def _machine(meminfo: Path) -> Memory:
    lines = read(meminfo).splitlines()
    kib = {line.split(":")[0]: number(line.split(":")[1].split()[0]) for line in lines if ":" in line}
    total, available = kib.get("MemTotal"), kib.get("MemAvailable")
    if total and available is not None:
        return Memory(2**10 * total, 2**10 * available)
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # not Linux: how much is free is a guess
    return Memory(total, total // 2)


def _groups(root: Path) -> Iterator[Memory]:
    """The control group of this process and those around it, as far as they have a limit."""
    for version, folder in group_folders(root, "memory"):
        files = _VERSION_2 if version == 2 else _VERSION_1
        limit, usage = number(read(folder / files.limit)), number(read(folder / files.usage))
        if limit is not None and usage is not None:
            statistics = dict(row.split(" ", 1) for row in read(folder / "memory.stat").splitlines() if " " in row)
            cached = sum(number(statistics.get(name, "")) or 0 for name in files.reclaimable)
            yield Memory(limit, limit - usage + cached)
