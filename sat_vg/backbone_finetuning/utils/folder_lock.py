"""One run at a time in a folder: a lock file that says who holds it and that dies with its process.

The lock is the operating system's (``flock``), so a process that died holds none, in whichever container it ran.
Not every file system carries such locks from one host to another. So the holder also renews the text in the file
every few seconds, and a starter that finds a process of another kernel in it waits: a lock that is not renewed is
taken over. No times are compared, as the clocks of two hosts may differ.
"""

import errno
import json
import os
import platform
import secrets
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.file_locks import is_alive, lock_file
from sat_vg.backbone_finetuning.utils.printable import printable
from sat_vg.backbone_finetuning.utils.terminal import say

LOCK = ".lock"
_OTHERS = "choose others with --checkpoint_dir DIR --log_dir DIR"
_RENEWED_EVERY_S, _STALE_AFTER_S = 5.0, 30.0
_SETTLED_AFTER_S = 2.0  # longer than it takes to read the lock file and write into it
_LENGTH = 1024  # of the text, always: a renewal overwrites it, so that no reader finds half of it
_held: set[int] = set()


def _drop_in_child() -> None:
    # A loader's worker would otherwise keep the lock for a moment after a run that was killed.
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_in_child)


class _Taken(NamedTuple):
    """A lock file that is this process's: its descriptor, and what is written into it."""

    descriptor: int
    text: dict[str, Any]

    def write(self) -> None:
        os.pwrite(self.descriptor, json.dumps(self.text).encode().ljust(_LENGTH), 0)


@contextmanager
def lock_folder(folder: Path, remedy: str = _OTHERS) -> Iterator[None]:
    """Make a folder if need be and keep other runs out of it.

    Args:
        folder: of one run at a time.
        remedy: what the message advises where another run uses it.

    Raises:
        ConfigError: another run uses the folder, or it cannot be made or written to.
    """
    path = folder / LOCK
    try:
        is_new = not folder.exists()  # raises where the name is too long
        folder.mkdir(parents=True, exist_ok=True)
        taken = _take(path)
    except _InUseError as error:
        raise ConfigError(f"the folder {str(folder)!r} {error}. Wait for it or stop it, or {remedy}") from None
    except OSError as error:
        raise ConfigError(f"the folder {str(folder)!r} cannot be written to ({error.strerror}); {remedy}") from error
    _held.add(taken.descriptor)
    is_over = threading.Event()
    renewal = threading.Thread(target=_renew, args=(path, taken, is_over), name="renew-lock", daemon=True)
    renewal.start()
    try:
        yield
    finally:
        is_over.set()
        renewal.join()
        if _is_at(taken.descriptor, path):
            path.unlink()
        _held.discard(taken.descriptor)
        os.close(taken.descriptor)
        if is_new and folder.exists() and not any(folder.iterdir()):
            folder.rmdir()


def is_in_use(folder: Path) -> bool:
    """Whether a run has a folder now, on this host or, as far as its lock was renewed lately, on another."""
    path = folder / LOCK
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return False  # there is none, or it lies where nobody can write
    try:
        is_free = lock_file(descriptor)
        was_renewed = time.time() - os.fstat(descriptor).st_mtime < _STALE_AFTER_S
        is_elsewhere = _read(path).get("kernel") != _kernel()
        return is_free is False or (was_renewed and (is_elsewhere or is_free is None))
    finally:
        os.close(descriptor)


class _InUseError(Exception):
    """Another run has the folder; the message says which."""


def _take(path: Path) -> _Taken:
    """Open and lock the lock file, and write this process's name into it."""
    while True:  # the run before may remove the file between our opening and our locking it
        with ExitStack() as undo:
            descriptor, is_mine = _open(path)
            undo.callback(os.close, descriptor)
            is_certain = _require_over(path, _read(path), lock_file(descriptor))
            if not _is_at(descriptor, path):
                continue
            taken = _Taken(descriptor, _own_text())
            os.ftruncate(descriptor, 0)
            taken.write()
            if not is_certain and not is_mine:
                # Of several that have found a lock free at once, the last to write its name has it (Lamport, 1987).
                time.sleep(_SETTLED_AFTER_S)
                seen = _read(path)
                if seen.get("token") != taken.text["token"]:
                    raise _InUseError(f"was taken by another run at the same time ({_who(seen)})")
            undo.pop_all()
            return taken


def _open(path: Path) -> tuple[int, bool]:
    """The lock file's descriptor, and whether it was made by this."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644), True
    except FileExistsError:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"{LOCK} in it is no file")
    return descriptor, False


def _require_over(path: Path, holder: dict[str, Any], is_locked: bool | None) -> bool:
    """Refuse where the process that is named in the file still runs.

    Returns:
        Whether the operating system vouches for it, and with it for the lock.
    """
    own = _own_text()
    is_here = holder.get("kernel", own["kernel"]) == own["kernel"]
    has_known_pid = (holder.get("host"), holder.get("processes", own["processes"])) == (own["host"], own["processes"])
    is_running = is_here and has_known_pid and is_alive(holder.get("pid"))
    if is_locked is False or (is_locked is None and is_running):
        raise _InUseError(f"is in use by another run ({_who(holder)})")
    if holder and not (is_here and (is_locked or has_known_pid)):
        _watch(path, holder)
        return False
    if holder.get("host") not in (None, own["host"]):
        say(f"{path}: taken over from {_who(holder)}, which has ended")
    return is_locked is True


def _watch(path: Path, holder: dict[str, Any]) -> None:
    """Refuse where the lock is renewed."""
    say(
        f"{path} is of {_who(holder)}, which cannot be asked from here; waiting {_STALE_AFTER_S:g} s to see whether "
        "it still renews it"
    )
    end = time.monotonic() + _STALE_AFTER_S
    while time.monotonic() < end:
        time.sleep(min(0.5, _STALE_AFTER_S / 10))
        seen = _read(path)
        if seen and seen != holder:
            raise _InUseError(f"is in use by a run on another host, which renews its lock ({_who(seen)})")
    say(f"{path}: taken over, as it was not renewed")


def _renew(path: Path, taken: _Taken, is_over: threading.Event) -> None:
    """Write into the file every few seconds that its holder is there; end the process if it is another's by now."""
    while not is_over.wait(_RENEWED_EVERY_S):
        seen = _read(path)
        if seen.get("token", taken.text["token"]) != taken.text["token"]:
            # Nothing may be written there any more, by whichever thread. A run that ends at once loses nothing.
            text = (
                f"{path} was not renewed for {_STALE_AFTER_S:g} s or more, and {_who(seen)} has taken it over; "
                "stopped at once, what was saved before is untouched"
            )
            sys.stderr.write(f"error: {printable(text)}\n")
            sys.stderr.flush()
            os._exit(1)
        taken.text.update(renewals=taken.text["renewals"] + 1, renewed=_now())
        with suppress(OSError):  # a full disk or a server that is away for a moment: the next renewal may succeed
            taken.write()


def _own_text() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": platform.node(),
        "started": _now(),
        "kernel": _kernel(),
        "processes": _processes(),
        "token": secrets.token_hex(8),
        "renewals": 0,
        "renewed": _now(),
    }


def _kernel() -> str:
    """The identity of the running kernel, which all containers of a machine share."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return platform.node()


def _processes() -> str:
    """The identity of the container whose process numbers these are."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _now() -> str:
    return datetime.now().isoformat(" ", "seconds")


def _who(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid')} on {holder.get('host')} since {holder.get('started')}"


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one that lies at a path."""
    return path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())


def _read(path: Path) -> dict[str, Any]:
    """The content of the file; nothing where there is none, or where its writer did not get that far.

    It is opened anew, as some file systems show the changes of another host only then.
    """
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(4 * _LENGTH) or b"{}")
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
