"""Images in shards: read from a folder, or from a command or address that each shard is fetched from when needed.

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
import io
import os
import re
import shlex
import stat
import time
import zlib
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from sat_vg.backbone_finetuning.data.reading.files import PathInArchive
from sat_vg.backbone_finetuning.data.shards.index import Sample, Shard
from sat_vg.backbone_finetuning.utils.bounded_cache import BoundedCache, NoRoom
from sat_vg.backbone_finetuning.utils.errors import ConfigError, DataError
from sat_vg.backbone_finetuning.utils.file_locks import alone_with
from sat_vg.backbone_finetuning.utils.file_stamps import sha256_of, stamp_of
from sat_vg.backbone_finetuning.utils.home_paths import expand_home
from sat_vg.backbone_finetuning.utils.regular_files import open_regular
from sat_vg.backbone_finetuning.utils.unreadable import Unreadable

SOURCE = "SAT_VG_SHARD_SOURCE"  # environment variable
_PLACE_OF_NAME = "{name}"
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_FILE = "shard.tar"
_NUM_LOCKS = 64
_WAITS_S = (0.5, 3.0, 0.0)  # after attempts at a shard; networks have hiccups
_LONGEST_WAIT_FOR_ROOM_S = 600.0
_BLOCK = 2**20


@dataclass(frozen=True)
class LocalShards:
    """Shards in a folder, read where they lie."""

    folder: Path

    def why_not_whole(self, shard: Shard) -> str | None:
        """Why a shard cannot be the one of the index, by its size; None where it can."""
        try:
            status = (self.folder / shard.name).stat()
        except OSError as error:
            return f"shard {shard.name!r} cannot be opened ({error.strerror})"
        if not stat.S_ISREG(status.st_mode):
            return f"shard {shard.name!r} is no file"
        if status.st_size != shard.num_bytes:
            return f"shard {shard.name!r} has {status.st_size} bytes, its index says {shard.num_bytes}"
        return None

    def check(self, shard: Shard) -> None:
        """Read a shard and compare it. Raises DataError where it is not there, or has other bytes."""
        problem = self.why_not_whole(shard)
        try:
            if problem is None and sha256_of(self.folder / shard.name).hexdigest() != shard.sha256:
                problem = f"shard {shard.name!r} has other bytes than its index says, as many of them: it was altered"
        except OSError as error:
            problem = f"shard {shard.name!r} cannot be read ({error.strerror or error})"
        if problem is not None:
            raise DataError(problem)

    def open(self, shard: Shard) -> BinaryIO:
        """The shard, open for reading. Raises OSError where it is not there."""
        return open_regular(self.folder / shard.name)

    def stamp(self, shard: Shard) -> str:
        """What differs once the shard's content does. Raises OSError where it is not there."""
        return stamp_of(self.folder / shard.name)

    def give_up(self, shard: Shard) -> None:
        """Take note that a shard turned out to be damaged: files of the user are left as they are."""


class FetchedShards:
    """Shards that are fetched when they are needed, and kept in a cache as long as there is room.

    The source is ``pipe:COMMAND`` or an address that webdataset opens, with ``{name}`` for the shard's name.
    """

    def __init__(self, source: str, cache: BoundedCache) -> None:
        self.source, self.cache = source, cache
        self._failed: dict[str, str] = {}  # what cannot be fetched is not tried anew for each of its images

    @property
    def kind(self) -> str:
        """How they are fetched, without what may be secret in it."""
        return "by a command" if self.source.startswith("pipe:") else f"from {self.source.partition('://')[0]}"

    def open(self, shard: Shard) -> BinaryIO:
        """The shard, open for reading. Raises DataError where it cannot be fetched or kept."""
        return self._open_kept(shard) or self._fetched(shard)

    def check(self, shard: Shard) -> None:
        """Read a shard and compare it; one that was kept and has rotted since is fetched anew. Raises as ``open``."""
        digest = hashlib.sha256()
        with self.open(shard) as file:
            while block := file.read(_BLOCK):
                digest.update(block)
        if digest.hexdigest() != shard.sha256:
            self.give_up(shard)
            self.open(shard).close()  # which compares what it fetches

    def stamp(self, shard: Shard) -> str:
        """What differs once the shard's content does; nothing else than these bytes is ever kept."""
        return shard.sha256

    def give_up(self, shard: Shard) -> None:
        """Take note that a shard turned out to be damaged: it is fetched anew the next time."""
        self.cache.remove(shard.sha256)

    def _open_kept(self, shard: Shard) -> BinaryIO | None:
        return self.cache.load(shard.sha256, lambda folder: open_regular(folder / _FILE))

    def _fetched(self, shard: Shard) -> BinaryIO:
        self.cache.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        number = int(shard.sha256[:8], 16) % _NUM_LOCKS  # so that there are never more files than these
        with alone_with(self.cache.folder / f".shard-{number:02d}.lock"):
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


class ShardPath(PathInArchive):
    """The path of an image in a shard: a text, as all other paths are, that knows where the bytes are.

    It reads ``FOLDER/train-000003.tar/00000041_sea_7.jpg``. It goes wherever a path goes (splits, orders, records,
    tables, messages), is compared as a text, and takes its place in the tar along into threads and worker processes.
    Code that opens images by their paths opens these too, without a registry.
    """

    __slots__ = ("crc", "offset", "shard", "store")
    store: LocalShards | FetchedShards
    shard: Shard
    offset: int
    crc: int

    def __new__(cls, text: str, store: LocalShards | FetchedShards, shard: Shard, sample: Sample) -> "ShardPath":
        """The path ``text`` of an image in a shard that is read from a store."""
        path = super().__new__(cls, text)
        path.store, path.shard = store, shard
        path.offset, path.size, path.crc = sample[2:]
        return path

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardPath, (str(self), self.store, self.shard, Sample("", 0, self.offset, self.size, self.crc))

    def open(self) -> BinaryIO:
        """The image's bytes, in memory.

        Raises OSError where the shard is not there, DataError where it cannot be fetched, and Unreadable where the
        bytes are not those that the index knows.
        """
        with self.store.open(self.shard) as file:
            file.seek(self.offset)
            content = file.read(self.size)
        if zlib.crc32(content) != self.crc:
            self.store.give_up(self.shard)
            raise Unreadable(
                f"its bytes in the shard {self.shard.name!r} are not those that shards.json knows: the shard was cut "
                "short or altered, or is of another writing",
                "copy or write the shard again (sat-vg shard --check DIR looks at all of them)",
            )
        return io.BytesIO(content)

    def stamp(self) -> str:
        """What differs once the image does. Raises OSError where the shard is not there."""
        return f"{self.store.stamp(self.shard)} {self.offset} {self.size} {self.crc}"


def store_of(folder: Path, cache: BoundedCache) -> LocalShards | FetchedShards:
    """Where shards are read from, as the environment says, else the index's folder; ``cache`` keeps fetched ones.

    Raises ConfigError where the environment variable is no folder, command or address, or webdataset is missing.
    """
    source = os.environ.get(SOURCE, "").strip()
    if not source:
        return LocalShards(folder)
    if not source.startswith("pipe:") and not _ADDRESS.match(source):
        return LocalShards(expand_home(source))
    if _PLACE_OF_NAME not in source:
        raise ConfigError(
            f"{SOURCE} names a command or an address without {_PLACE_OF_NAME}, which stands for the name of a shard; "
            f"for example 'pipe:aws s3 cp s3://BUCKET/{_PLACE_OF_NAME} -'"
        )
    require_webdataset("shards are fetched")
    known = importlib.import_module("webdataset.gopen").gopen_schemes
    scheme = source.partition(":")[0]
    if scheme not in known:
        raise ConfigError(
            f"{SOURCE} names an address of the kind {scheme!r}, and webdataset opens {', '.join(sorted(known)[1:])}; "
            f"use a command that writes a shard to its standard output: 'pipe:COMMAND {_PLACE_OF_NAME}'"
        )
    return FetchedShards(source, cache)


def require_webdataset(what: str) -> ModuleType:
    """webdataset, imported. Raises ConfigError where that cannot be; ``what`` says what it is needed for."""
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
    """Fetch a shard into a file, in several attempts. Raises DataError where that gives no such shard."""
    for wait in _WAITS_S:
        try:
            problem = _attempt(source.replace(_PLACE_OF_NAME, shard.name), shard, path)
            break
        except _FailedError as error:
            problem = f"{error}, in {len(_WAITS_S)} attempts"
            time.sleep(wait)
    if problem is not None:
        raise DataError(
            f"the shard {shard.name!r} cannot be fetched from where {SOURCE} says: {problem}; mend that, and run the "
            "same command again"
        )


def _attempt(url: str, shard: Shard, path: Path) -> str | None:
    """Fetch a shard into a file; why it is another one than the index says, if it is.

    Raises _FailedError where the source fails, or ends too early.
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
