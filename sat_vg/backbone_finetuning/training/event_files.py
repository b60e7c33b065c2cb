"""TensorBoard's files of events, in an order that a clock that is set back does not change.

TensorBoard reads the files of a folder by the times in their names, and takes what it reads last for the newest. So a
run that goes on gives its file, and each event, a time that is not before those that are there.
"""

import math
import os
import platform
import re
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import FileWriter, SummaryWriter

EVENT_FILES = "events.out.tfevents.*"
_TIME_IN_NAME = re.compile(r"events\.out\.tfevents\.(\d{10})\.")
_LATEST = 1e10  # seconds, in the year 2286: names hold ten digits


class EventWriter(SummaryWriter):
    """Writes events into a new file of a folder, after those that are there.

    Args:
        folder: that exists.
        purge_step: what an earlier process wrote from this step on is hidden.

    Raises:
        OSError: the file cannot be made.
    """

    def __init__(self, folder: Path, purge_step: int) -> None:
        self._file = _EventFile(folder)
        super().__init__(str(folder))
        start = SessionLog(status=SessionLog.START)
        self._file.add_event(Event(file_version="brain.Event:2"), purge_step)
        self._file.add_event(Event(session_log=start), purge_step)

    def _get_file_writer(self) -> FileWriter:
        return self._file

    def flush(self) -> None:
        """Hand everything to the operating system."""
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class _EventFile(FileWriter):
    """One event file; torch's own writer takes names and times from a clock that may have been set back."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        found = list(folder.glob(EVENT_FILES))
        matches = [_TIME_IN_NAME.match(path.name) for path in found]
        named = [int(match[1]) for match in matches if match]
        self._newest = max((time for path in found for time in _times_in(path)), default=0.0)
        began = max(int(time.time()), math.ceil(self._newest), max(named, default=-1) + 1)
        name = f"events.out.tfevents.{began:010d}.{platform.node()}.{os.getpid()}"
        self._file = (folder / name).open("xb")
        self.event_writer = RecordWriter(self._file)

    def get_logdir(self) -> str:
        """The folder."""
        return str(self._folder)

    def add_event(self, event: Event, step: int | None = None, walltime: float | None = None) -> None:
        """Write an event, at a time that is not before that of the one before."""
        self._newest = max(self._newest, time.time() if walltime is None else walltime)
        event.wall_time = self._newest
        if step is not None:
            event.step = int(step)
        self.event_writer.write(event.SerializeToString())

    def flush(self) -> None:
        """Hand everything to the operating system."""
        self.event_writer.flush()

    def close(self) -> None:
        """Close the file."""
        self.event_writer.close()


def _times_in(path: Path) -> Iterator[float]:
    """The times of a file's events, up to where it is cut short or damaged.

    A record is the length of an event (8 bytes), a checksum (4), the event, and a checksum (4). An event begins with
    its time, as its first field.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        while len(head := file.read(21)) == 21:
            length, field, moment = struct.unpack("<Q4xBd", head)
            if length < 9 or length + 12 > size or field != 9:
                return
            file.seek(length - 9 + 4, os.SEEK_CUR)
            if 0 <= moment < _LATEST:
                yield moment
