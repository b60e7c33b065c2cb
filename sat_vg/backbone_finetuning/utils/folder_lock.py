"""One run at a time in a folder: a lock file that says who holds it and that dies with its process."""

import json
import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.file_locks import is_alive, lock_file

LOCK = ".lock"
_OTHERS = "choose others with --checkpoint_dir DIR --log_dir DIR"
_held: set[int] = set()


def _drop_in_child() -> None:
    # A loader's worker would otherwise keep the lock for a moment after a run that was killed.
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_in_child)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Make a folder if need be and keep other runs out of it.

    The operating system holds the lock (``flock``), so that of a process that died, by whatever means, is free.
    The file's text is for people, for other hosts, and for file systems that lock nothing.

    Raises:
        ConfigError: another run uses the folder, or it cannot be made or written to.
    """
    is_new = not folder.exists()
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _open_locked(path)
    except OSError as error:
        raise ConfigError(f"the folder {str(folder)!r} cannot be written to ({error.strerror}); {_OTHERS}") from error
    _held.add(descriptor)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        _held.discard(descriptor)
        os.close(descriptor)
        if is_new and not any(folder.iterdir()):
            folder.rmdir()


def _open_locked(path: Path) -> int:
    """The open lock file, locked and with this process's name in it."""
    while True:  # the run before may remove the file between our opening and our locking it
        with ExitStack() as undo:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            undo.callback(os.close, descriptor)
            _take(descriptor, path)
            is_current = path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())
            if is_current:
                mine = {
                    "pid": os.getpid(),
                    "host": platform.node(),
                    "started": datetime.now().isoformat(" ", "seconds"),
                }
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(mine).encode(), 0)
                undo.pop_all()
                return descriptor


def _take(descriptor: int, path: Path) -> None:
    """Lock the file, or refuse."""
    is_locked = lock_file(descriptor)
    holder = _holder(descriptor)
    who = f"process {holder.get('pid')} on {holder.get('host')} since {holder.get('started')}"
    on_this_host = holder.get("host") == platform.node()
    if is_locked is False or (is_locked is None and on_this_host and is_alive(holder.get("pid"))):
        raise ConfigError(
            f"the folder {str(path.parent)!r} is in use by another run ({who}). Wait for it or stop it, or {_OTHERS}"
        )
    if holder and not on_this_host:
        raise ConfigError(
            f"the folder {str(path.parent)!r} is in use by a run on another host, or was when that host went down "
            f"({who}). If that run is dead: rm {str(path)!r}. Or {_OTHERS}"
        )


def _holder(descriptor: int) -> dict[str, Any]:
    """What the file says; nothing where its writer did not get that far."""
    try:
        content = json.loads(os.pread(descriptor, 4096, 0) or b"{}")
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
