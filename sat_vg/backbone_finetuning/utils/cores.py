"""How many processor cores this process may use."""

import os
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cores() -> int:
    """Cores that the process may run on, and a container's quota lets it use; 1 or more."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _QUOTA.read_text().split()
        if quota != "max":
            allowed = min(allowed, int(quota) // int(period))
    except (OSError, ValueError):
        pass  # no such group here
    return max(1, allowed)
