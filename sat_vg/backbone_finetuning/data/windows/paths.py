"""Paths of windows: texts that are read as images wherever paths are, without a file of their own.

Such a path reads ``SCENE/000512_000256_64x64``: row, column, width and height. It goes wherever a path goes and is
read out of its scene, as an image file with the scene's bands, nodata and coordinates.
"""

import io
import re
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from sat_vg.backbone_finetuning.data.reading.files import PathInArchive
from sat_vg.backbone_finetuning.data.windows import opened
from sat_vg.backbone_finetuning.data.windows.scene import Scene, Window
from sat_vg.backbone_finetuning.utils.errors import ConfigError, DataError
from sat_vg.backbone_finetuning.utils.file_stamps import stamp_of
from sat_vg.backbone_finetuning.utils.unreadable import Unreadable

_TEXT = re.compile(r"(.+)/(\d{6,9})_(\d{6,9})_(0*[1-9]\d{0,8})x(0*[1-9]\d{0,8})", re.DOTALL)
_MOST_WINDOWS = 2_000_000  # each takes some 400 bytes

T = TypeVar("T")


class WindowPath(PathInArchive):
    """The path of a window of a scene, in its pixels."""

    __slots__ = ("scene", "window")
    scene: str
    window: Window

    def __new__(cls, scene: str, window: Window) -> "WindowPath":
        """See the class."""
        column, row, width, height = window
        path = super().__new__(cls, f"{scene}/{row:06d}_{column:06d}_{width}x{height}")
        path.scene, path.window, path.size = scene, window, 0
        return path

    def __reduce__(self) -> tuple[Any, ...]:
        return WindowPath, (self.scene, self.window)

    def open(self) -> BinaryIO:
        """The window as an image file in memory.

        Raises:
            Unreadable: it lies beyond the scene, has no valid pixel, or the scene is damaged.
        """
        return io.BytesIO(self._there(self._of_scene(opened.encode_window)))

    def rgb(self) -> NDArray[np.uint8] | None:
        """The window's pixels ``[H, W, 3]``, where the scene's values are 8-bit RGB as they stand.

        Raises:
            Unreadable: as ``open``.
        """
        is_rgb = self._of_scene(lambda scene, _: opened.open_scene(scene).is_rgb)
        return self._there(self._of_scene(opened.rgb_window)) if is_rgb else None

    def dataset(self) -> opened.WindowDataset | None:
        """The window as rasterio shows its image file; None: only that file tells all of it.

        Raises:
            Unreadable: it lies beyond the scene, or the scene is damaged.
        """
        return self._of_scene(opened.window_dataset)

    def _of_scene(self, read: Callable[[str, Window], T]) -> T:
        try:
            require_inside(opened.open_scene(self.scene), self.window)
            return read(self.scene, self.window)
        except DataError as error:
            raise Unreadable(str(error), opened.MEND) from None

    @staticmethod
    def _there(content: T | None) -> T:
        if content is None:
            raise Unreadable("it has no value: all its pixels are nodata or masked", "leave it out")
        return content

    def stamp(self) -> str:
        """What differs once the scene does. Raises OSError where it is not there."""
        return f"{stamp_of(self.scene)} {self.window}"


def parse_window_path(text: str) -> WindowPath | None:
    """The path of a window that a text is; None: it is none."""
    found = _TEXT.fullmatch(text)
    if found is None:
        return None
    row, column, width, height = map(int, found.groups()[1:])
    return WindowPath(found[1], Window(column, row, width, height))


def parse_window(text: str) -> Window:
    """A window of a table, ``column row width height``. Raises ValueError where it is none."""
    column, row, width, height = (int(part) for part in text.split())
    if min(column, row) < 0 or min(width, height) < 1:
        raise ValueError("a window begins at 0 or above and is 1 pixel wide and high at least")
    return Window(column, row, width, height)


def require_inside(scene: Scene, window: Window) -> None:
    """Raise a DataError where a window is not all in the scene."""
    column, row, width, height = window
    if column + width > scene.width or row + height > scene.height:
        raise DataError(
            f"the window {window} (column, row, width, height) leads out of the scene {scene.path!r} of "
            f"{scene.width} x {scene.height} pixels"
        )


def require_room(scene: Scene, size: int) -> None:
    """Raise a ConfigError where a scene is smaller than a window."""
    if min(scene.width, scene.height) < size:
        raise ConfigError(
            f"--size {size}: the scene {scene.path!r} has {scene.width} x {scene.height} pixels, less than a window; "
            f"use --size {min(scene.width, scene.height)} or smaller"
        )


def starts(length: int, size: int, stride: int) -> list[int]:
    """Where windows of ``size`` begin on a line of ``length`` pixels; the last one is moved back to its end."""
    first = list(range(0, length - size + 1, stride))
    return first if first[-1] + size == length else [*first, length - size]


def grid_of(scene: Scene, size: int, stride: int) -> list[Window]:
    """Windows of ``size`` x ``size`` pixels over a scene, row by row.

    Raises:
        ConfigError: the scene is smaller than a window, or there are too many.
    """
    require_room(scene, size)
    rows, columns = starts(scene.height, size, stride), starts(scene.width, size, stride)
    if len(rows) * len(columns) > _MOST_WINDOWS:
        raise ConfigError(
            f"--stride {stride}: the scene {scene.path!r} would give {len(rows) * len(columns):,} windows (the limit "
            f"is {_MOST_WINDOWS:,}); use a larger one"
        )
    return [Window(column, row, size, size) for row in rows for column in columns]


def valid_shares(scene: Scene, windows: Sequence[Window]) -> NDArray[np.float64]:
    """Share of each window's pixels that are not nodata ``[N]``.

    Raises:
        DataError: the scene is damaged.
    """
    if not scene.can_miss:
        return np.ones(len(windows))
    return shares_of(windows, lambda row, high: opened.valid_pixels(scene.path, Window(0, row, scene.width, high)))


def shares_of(windows: Sequence[Window], strip_of: Callable[[int, int], NDArray[Any] | None]) -> NDArray[np.float64]:
    """Share of each window's pixels that are 1 or true ``[N]``.

    ``strip_of`` gives them in strips, a row of windows at a time: first row and height → ``[height, W]``; None: none.
    """
    shares = np.zeros(len(windows))
    places = sorted(range(len(windows)), key=lambda place: windows[place].row)
    for (row, height), same in groupby(places, key=lambda place: (windows[place].row, windows[place].height)):
        strip = strip_of(row, height)
        if strip is None:
            continue
        below = np.concatenate([[0], np.cumsum(strip.sum(axis=0, dtype=np.int64))])
        for place in same:
            column, _, width, _ = windows[place]
            shares[place] = (below[column + width] - below[column]) / (width * height)
    return shares
