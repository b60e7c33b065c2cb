"""Paths of images that lie in tar files: texts, as all other paths are, that know where the bytes are.

Such a path reads ``FOLDER/train-000003.tar/00000041_sea_7.jpg``. It goes wherever a path goes (splits, orders,
records, tables, messages), is compared as a text, and takes its place in the tar along into threads and worker
processes. Code that opens images by their paths opens these too, without a registry.
"""

import io
import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

from sat_vg.backbone_finetuning.data.reading.files import PathInArchive
from sat_vg.backbone_finetuning.utils.unreadable import Unreadable


class ShardStore(Protocol):
    """Where shards are read from."""

    def open(self, shard: "Shard") -> BinaryIO:
        """The shard, open for reading.

        Raises:
            OSError: it is not there.
            DataError: it cannot be fetched.
        """

    def stamp(self, shard: "Shard") -> str:
        """What differs once the shard's content does. Raises OSError where it is not there."""

    def give_up(self, shard: "Shard") -> None:
        """Take note that the shard turned out to be damaged."""


@dataclass(frozen=True)
class Shard:
    """A tar file of images, as the index knows it.

    Attributes:
        name: of the file, without a folder.
        num_bytes: of the file.
        sha256: of its bytes, in hexadecimal digits.
        store: where it is read from.
    """

    name: str
    num_bytes: int
    sha256: str
    store: ShardStore


class ShardPath(PathInArchive):
    """The path of an image in a shard.

    Args:
        text: the path.
        shard: the tar file.
        offset: of the image's first byte in it.
        size: of the image, in bytes.
        crc: CRC-32 of the image's bytes.
    """

    __slots__ = ("crc", "offset", "shard")

    def __new__(cls, text: str, shard: Shard, offset: int, size: int, crc: int) -> "ShardPath":
        """See the class."""
        path = super().__new__(cls, text)
        path.shard, path.offset, path.size, path.crc = shard, offset, size, crc
        return path

    shard: Shard
    offset: int
    crc: int

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardPath, (str(self), self.shard, self.offset, self.size, self.crc)

    def open(self) -> BinaryIO:
        """The image's bytes, in memory.

        Raises:
            OSError: the shard is not there.
            DataError: it cannot be fetched.
            Unreadable: the bytes are not those that the index knows.
        """
        with self.shard.store.open(self.shard) as file:
            file.seek(self.offset)
            content = file.read(self.size)
        if zlib.crc32(content) != self.crc:
            self.shard.store.give_up(self.shard)
            raise Unreadable(
                f"its bytes in the shard {self.shard.name!r} are not those that shards.json knows: the shard was cut "
                "short or altered, or is of another writing",
                "copy or write the shard again (sat-vg shard --check DIR looks at all of them)",
            )
        return io.BytesIO(content)

    def stamp(self) -> str:
        """What differs once the image does. Raises OSError where the shard is not there."""
        return f"{self.shard.store.stamp(self.shard)} {self.offset} {self.size} {self.crc}"
