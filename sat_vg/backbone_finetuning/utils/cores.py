"""How many processor cores this process may use."""

import os
from collections.abc import Iterator
from pathlib import Path

from sat_vg.backbone_finetuning.utils.control_groups import group_folders, number, read


def usable_cores(root: Path = Path("/")) -> int:
    """Cores that the process may run on, and that the quota of its container or job lets it use; 1 or more.

    Args:
        root: where ``proc`` and ``sys`` are.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *_quotas(root)]))


def _quotas(root: Path) -> Iterator[int]:
    """Whole cores that the control group of this process and those around it may use, where they have a limit."""
    for version, folder in group_folders(root, "cpu"):
        if version == 2:
            quota, _, period = read(folder / "cpu.max").partition(" ")
        else:
            quota, period = read(folder / "cpu.cfs_quota_us"), read(folder / "cpu.cfs_period_us")
        microseconds, of = number(quota), number(period)
        if microseconds is not None and of:  # "max" in version 2 and -1 in version 1: no limit
            yield microseconds // of
