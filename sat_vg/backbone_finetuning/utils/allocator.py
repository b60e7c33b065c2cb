"""glibc's handling of freed memory."""

import ctypes
import sys
from collections.abc import Callable

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MOST = 2**31 - 1
_MMAP_FROM = 2**30


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory for the next step instead of returning it to the system.

    By default every large tensor is mapped and unmapped anew, so the system fills its pages with zeros in every step.
    Holds for the rest of the process, which then keeps its largest size.

    Returns:
        Whether that could be done: on Linux with glibc.
    """
    mallopt = _of_glibc("mallopt")
    return mallopt is not None and bool(mallopt(_M_MMAP_THRESHOLD, _MMAP_FROM) and mallopt(_M_TRIM_THRESHOLD, _MOST))


def release_freed_memory() -> None:
    """Return freed memory to the system once, where glibc can."""
    malloc_trim = _of_glibc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _of_glibc(name: str) -> Callable[..., int] | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        function: Callable[..., int] = getattr(ctypes.CDLL("libc.so.6"), name)
    except (OSError, AttributeError):  # another C library
        return None
    return function
