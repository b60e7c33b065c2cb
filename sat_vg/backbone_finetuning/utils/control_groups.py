"""Linux's control groups, by which containers and jobs are given a part of the machine."""

from collections.abc import Iterator
from pathlib import Path


def group_folders(root: Path, controller: str) -> Iterator[tuple[int, Path]]:
    """Version (1 or 2) and folder of the control group of this process, and of those around it.

    Args:
        root: where ``proc`` and ``sys`` are.
        controller: such as ``memory``.
    """
    for line in read(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number != "0" and controller not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("" if number == "0" else controller)
        inner = mount / path.lstrip("/")
        # Inside a container the path may be the host's; then only the mount itself is to be seen.
        for folder in (inner, *(outer for outer in inner.parents if outer == mount or mount in outer.parents)):
            yield (2 if number == "0" else 1), folder


def read(path: Path) -> str:
    """The text of one of the kernel's files; empty where there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def number(text: str) -> int | None:
    """The whole number in a text; None where it is another word, such as "max"."""
    return int(text) if text.strip().isdecimal() else None
