"""Reading shards: from a folder, or from a command or address that each is fetched from when it is needed.

Fetched shards are kept in the cache folder, bounded by ``cache_gib``, so a disk that holds a few shards serves a data
set of any size. One process at a time fetches a shard, however many need it; it is used once its size and hash are
those of the index, and removed when others need the room and it was used least recently. It is opened anew for each
image: a shard that was removed is fetched again; one that is removed while it is read stays whole until it is closed.

The source is an environment variable: configurations travel within checkpoints, and indexes with their shards, and
neither may bring a command that this machine runs.
"""

import contextlib
import hashlib
import importlib
import os
import re
import shlex
import stat
import time
from collections.abc import Generator
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

from sat_vg.backbone_finetuning.data.shards.index import ListedShard
from sat_vg.backbone_finetuning.data.shards.paths import Shard
from sat_vg.backbone_finetuning.utils.bounded_cache import BoundedCache, NoRoom
from sat_vg.backbone_finetuning.utils.errors import ConfigError, DataError
from sat_vg.backbone_finetuning.utils.file_locks import alone_with
from sat_vg.backbone_finetuning.utils.file_stamps import stamp_of
from sat_vg.backbone_finetuning.utils.home_paths import expand_home
from sat_vg.backbone_finetuning.utils.regular_files import open_regular

SOURCE = "SAT_VG_SHARD_SOURCE"  # environment variable
PLACE_OF_NAME = "{name}"
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_FILE = "shard.tar"
_NUM_LOCKS = 64
_WAITS_S = (0.5, 3.0)  # between attempts at a shard; networks have hiccups
_LONGEST_WAIT_FOR_ROOM_S = 600.0
_BLOCK = 2**20


class LocalShards:
    """Shards in a folder, read where they lie.

    Args:
        folder: that holds them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path_of(self, shard: Shard | ListedShard) -> Path:
        """The file of a shard."""
        return self.folder / shard.name

    def why_not_whole(self, shard: ListedShard) -> str | None:
        """Why a shard cannot be the one of the index, by its size; None where it can."""
        try:
            status = self.path_of(shard).stat()
        except OSError as error:
            return f"shard {shard.name!r} cannot be opened ({error.strerror})"
        if not stat.S_ISREG(status.st_mode):
            return f"shard {shard.name!r} is no file"
        if status.st_size != shard.num_bytes:
            return f"shard {shard.name!r} has {status.st_size} bytes, its index says {shard.num_bytes}"
        return None

    def open(self, shard: Shard) -> BinaryIO:
        """See ``ShardStore``."""
        return open_regular(self.path_of(shard))

    def stamp(self, shard: Shard) -> str:
        """See ``ShardStore``."""
        return stamp_of(self.path_of(shard))

    def give_up(self, shard: Shard) -> None:
        """See ``ShardStore``; files of the user are left as they are."""


class FetchedShards:
    """Shards that are fetched when they are needed, and kept as long as there is room.

    Args:
        source: ``pipe:COMMAND`` or an address that webdataset opens, in which ``{name}`` stands for the shard's name.
        cache: where they are kept.
    """

    def __init__(self, source: str, cache: BoundedCache) -> None:
        self.source, self.cache = source, cache
        self._failed: dict[str, str] = {}  # what cannot be fetched is not tried anew for each of its images

    @property
    def kind(self) -> str:
        """How they are fetched, without what may be secret in it."""
        return "by a command" if self.source.startswith("pipe:") else f"from {self.source.partition('://')[0]}"

    def open(self, shard: Shard) -> BinaryIO:
        """See ``ShardStore``."""
        return self._open_kept(shard) or self._fetched(shard)

    def stamp(self, shard: Shard) -> str:
        """See ``ShardStore``; nothing else than these bytes is ever kept."""
        return shard.sha256

    def give_up(self, shard: Shard) -> None:
        """See ``ShardStore``: it is fetched anew the next time."""
        self.cache.remove(shard.sha256)

    def _open_kept(self, shard: Shard) -> BinaryIO | None:
        folder = self.cache.find(shard.sha256)
        try:
            return None if folder is None else open_regular(folder / _FILE)
        except OSError:  # removed meanwhile, or no file
            self.cache.remove(shard.sha256)
            return None

    def _fetched(self, shard: Shard) -> BinaryIO:
        with self._alone_with(shard):
            kept = self._open_kept(shard)  # fetched while this process waited for the lock
            if kept is not None:
                return kept
            if shard.name in self._failed:
                raise DataError(self._failed[shard.name])
            try:
                return self._fetch(shard)
            except DataError as error:
                self._failed[shard.name] = str(error)
                raise
            except OSError as error:
                raise DataError(
                    f"the shard {shard.name!r} cannot be kept in {str(self.cache.folder)!r} "
                    f"({error.strerror or error}); make room there, or set SAT_VG_CACHE to a folder on another disk"
                ) from error

    def _fetch(self, shard: Shard) -> BinaryIO:
        """Fetch a shard into the cache, and open it before another process can remove it."""
        waited = time.monotonic()
        while True:
            with self.cache.building(shard.sha256, shard.num_bytes) as folder:
                if not isinstance(folder, NoRoom):
                    _download(self.source, shard, folder / _FILE)
                    return (folder / _FILE).open("rb")
            is_promised = folder.bound == "limit" and shard.num_bytes <= self.cache.max_bytes
            if not is_promised or time.monotonic() - waited > _LONGEST_WAIT_FOR_ROOM_S:
                raise DataError(
                    f"the shard {shard.name!r} takes {folder.needed} bytes, and the "
                    + ("cache" if folder.bound == "limit" else "disk")
                    + f" of {str(self.cache.folder)!r} has {folder.free} to spare; raise --cache_gib, make room, or "
                    "set SAT_VG_CACHE to a folder on another disk"
                )
            time.sleep(0.1)  # others fill the room with what they fetch just now, and can then be removed

    def _alone_with(self, shard: Shard) -> AbstractContextManager[bool]:
        """Keep other threads and processes from fetching the same shard meanwhile."""
        self.cache.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        number = int(shard.sha256[:8], 16) % _NUM_LOCKS  # so that there are never more files than these
        return alone_with(self.cache.folder / f".shard-{number:02d}.lock")


def store_of(folder: Path, cache: BoundedCache) -> LocalShards | FetchedShards:
    """Where the shards of an index are read from, as the environment says: else from the folder of the index.

    Args:
        folder: of the index.
        cache: where fetched ones are kept.

    Raises:
        ConfigError: the environment variable is no folder, command or address, or webdataset is not installed.
    """
    source = os.environ.get(SOURCE, "").strip()
    if not source:
        return LocalShards(folder)
    if not source.startswith("pipe:") and not _ADDRESS.match(source):
        return LocalShards(expand_home(source))
    if PLACE_OF_NAME not in source:
        raise ConfigError(
            f"{SOURCE} names a command or an address without {PLACE_OF_NAME}, which stands for the name of a shard; "
            f"for example 'pipe:aws s3 cp s3://BUCKET/{PLACE_OF_NAME} -'"
        )
    require_webdataset("shards are fetched")
    known = importlib.import_module("webdataset.gopen").gopen_schemes
    scheme = source.partition(":")[0]
    if scheme not in known:
        raise ConfigError(
            f"{SOURCE} names an address of the kind {scheme!r}, and webdataset opens {', '.join(sorted(known)[1:])}; "
            f"use a command that writes a shard to its standard output: 'pipe:COMMAND {PLACE_OF_NAME}'"
        )
    return FetchedShards(source, cache)


def require_webdataset(what: str) -> ModuleType:
    """webdataset, imported.

    Raises:
        ConfigError: it is not installed; ``what`` says what it is needed for.
    """
    try:
        return importlib.import_module("webdataset")
    except ImportError as error:
        raise ConfigError(
            f"{what} with webdataset, which cannot be imported ({error}); install it with "
            "pip install 'sat_vg[webdataset]'. Shards that lie in a folder are read without it"
        ) from error


class _FailedError(Exception):
    """What went wrong with a source; it may go better the next time."""


def _download(source: str, shard: Shard, path: Path) -> None:
    """Fetch a shard into a file, in several attempts.

    Raises:
        DataError: the source fails, or gives something else than the index says.
        OSError: the file cannot be written.
    """
    url = source.replace(PLACE_OF_NAME, shard.name)
    for wait in (*_WAITS_S, None):
        try:
            problem = _attempt(url, shard, path)
        except _FailedError as error:
            problem = f"{error}, in {len(_WAITS_S) + 1} attempts"
            if wait is not None:
                time.sleep(wait)
                continue
        if problem is None:
            return
        raise DataError(
            f"the shard {shard.name!r} cannot be fetched from where {SOURCE} says: {problem}; mend that, and run the "
            "same command again"
        )


def _attempt(url: str, shard: Shard, path: Path) -> str | None:
    """Fetch a shard into a file; why it is another one than the index says, if it is.

    Raises:
        _FailedError: the source fails, or ends too early.
    """
    digest, count = hashlib.sha256(), 0
    said = path.with_name("stderr")
    blocks = _blocks(url, said)
    with path.open("wb") as file:
        try:
            for block in blocks:
                digest.update(block)
                count += file.write(block)
                if count > shard.num_bytes:
                    break
        finally:
            with contextlib.suppress(_FailedError):  # what was cut off may complain
                blocks.close()
    last_words = _last_line(said)
    said.unlink(missing_ok=True)
    if count < shard.num_bytes:
        raise _FailedError(f"it has {count} bytes, its index says {shard.num_bytes}: it is cut short{last_words}")
    if count > shard.num_bytes or digest.hexdigest() != shard.sha256:
        what = "more bytes" if count > shard.num_bytes else "another SHA-256"
        return f"it has {what} than its index says: it was altered, or is of another writing"
    return None


def _blocks(url: str, said: Path) -> Generator[bytes, None, None]:
    """What a source gives, as webdataset opens it; what a command says on the way is kept in ``said``."""
    if url.startswith("pipe:"):
        url = f"pipe:(\n{url.removeprefix('pipe:')}\n) 2>{shlex.quote(str(said))}"
    try:
        with contextlib.closing(require_webdataset("shards are fetched").gopen(url, "rb")) as stream:
            while block := stream.read(_BLOCK):
                yield block
    except (OSError, ValueError, ImportError) as error:  # webdataset's have no class of their own
        code = re.search(r"exit (-?\d+)", str(error))
        why = f"the command ended with exit code {code.group(1)}{_last_line(said)}" if code else str(error)
        raise _FailedError(why) from error


def _last_line(said: Path) -> str:
    with contextlib.suppress(OSError):
        lines = [line.strip() for line in said.read_text(errors="replace").splitlines()]
        return next((f" and said {line[:300]!r}" for line in reversed(lines) if line), "")
    return ""
