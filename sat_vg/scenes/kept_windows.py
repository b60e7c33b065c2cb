"""What a map has predicted so far, in a file beside it, so that the same command goes on after a kill.

The file begins with a hash of all that the numbers depend on; behind it are the probabilities of each batch of
windows with their CRC-32. What is cut or damaged ends what is read back. As batches begin at the same windows again,
a map that was stopped is the same to the bit.

``Spool``, of ``extract``, is for features that memory does not hold: it has no checksums, and reads the time of
change of each image, which here are windows of one scene.
"""

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from sat_vg.backbone_finetuning.commands.output_folder import explaining_writing
from sat_vg.backbone_finetuning.utils.errors import ConfigError, UserError, WriteError
from sat_vg.backbone_finetuning.utils.file_locks import lock_file

_CRC_BYTES = 4


class KeptWindows:
    """Probabilities of the first windows ``[N, classes]``, to which each batch is added.

    ``key`` is the hash; ``shape`` is that of all windows' probabilities.
    """

    def __init__(self, file: BinaryIO, key: bytes, shape: tuple[int, int], batch_size: int) -> None:
        self._file = file
        if file.read(len(key)) != key:
            file.seek(0)
            file.truncate()
            file.write(key)
        self.values: NDArray[np.float32] = np.empty(shape, np.float32)
        self.count = 0  # windows that are done
        ends = [len(key)]
        while self.count < shape[0]:
            rows = self.values[self.count : self.count + batch_size]
            content = file.read(rows.nbytes + _CRC_BYTES)
            if len(content) < rows.nbytes + _CRC_BYTES or content[rows.nbytes :] != _crc(content[: rows.nbytes]):
                break
            rows[:] = np.frombuffer(content, np.float32, rows.size).reshape(rows.shape)
            self.count += len(rows)
            ends.append(file.tell())
        if self.count:  # the last batch is predicted again: what its windows let us warn of is said in this call, too
            self.count = (self.count - 1) // batch_size * batch_size
            ends.pop()
        file.seek(ends[-1])
        file.truncate()

    def add(self, rows: NDArray[np.float32]) -> None:
        """Keep the next batch. Raises OSError where there is no room."""
        self.values[self.count : self.count + len(rows)] = rows
        self.count += len(rows)
        content = rows.tobytes()
        self._file.write(content + _crc(content))
        self._file.flush()


def _crc(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(_CRC_BYTES, "little")


@contextmanager
def windows_kept_beside(target: Path, key: bytes, shape: tuple[int, int], batch_size: int) -> Iterator[KeptWindows]:
    """The windows of a map that will be ``target``; the file goes once the map is there, or cannot be made.

    Raises:
        ConfigError: another process makes this map.
        WriteError: there is no room.
    """
    path, cannot = target.with_name(f".{target.name}.windows.tmp"), f"{str(target)!r} cannot be written"
    with explaining_writing(cannot, "; choose another"):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
    with (
        os.fdopen(descriptor, "r+b") as file,
        explaining_writing(cannot, "; make room there, and the same command goes on"),
    ):
        if lock_file(descriptor) is False:
            raise ConfigError(f"{str(target)!r} is being written by another process; wait for it, or choose another")
        kept = KeptWindows(file, key, shape, batch_size)
        try:
            yield kept
        except BaseException as error:
            is_of_no_use = isinstance(error, UserError) and not isinstance(error, WriteError)
            if is_of_no_use or not kept.count:
                path.unlink()
            raise
        path.unlink()
