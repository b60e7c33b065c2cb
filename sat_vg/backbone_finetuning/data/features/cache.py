"""Features of frozen stages, computed once and memory-mapped. The stages are a function from outside."""

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sat_vg.backbone_finetuning.data.features.spool import map_numbers
from sat_vg.backbone_finetuning.data.loading.loaders import Batch, Pass
from sat_vg.backbone_finetuning.utils.bounded_cache import BoundedCache, NoRoom
from sat_vg.backbone_finetuning.utils.ranks import Ranks
from sat_vg.backbone_finetuning.utils.terminal import progress

_FILE = "features.bin"


class NotKept(NamedTuple):
    """The cache's folder cannot be written to: ``reason`` says why."""

    reason: str


@dataclass(frozen=True)
class FeatureShape:
    """What the function gives for one image."""

    shape: tuple[int, ...]  # of the feature, without the batch
    # its dimensions from the outermost in memory to the innermost; channels-last maps are stored so
    dim_order: tuple[int, ...]
    dtype: torch.dtype  # of its numbers

    @classmethod
    def of(cls, features: Tensor) -> "FeatureShape":
        """Measured on an example ``[B, ...]`` with the batch outermost, B of 2 or more."""
        strides = features.stride()
        order = sorted(range(1, features.ndim), key=lambda dim: (-strides[dim], dim))
        return cls(tuple(features.shape[1:]), tuple(dim - 1 for dim in order), features.dtype)

    @property
    def num_bytes(self) -> int:
        """Of one image."""
        return prod(self.shape) * self.dtype.itemsize


class StoredFeatures:
    """Features of images in one or more views, each augmented in another way, in a mapped file.

    The file may be unlinked later. Where it is ``writable``, ``put`` may be called.
    """

    def __init__(
        self, file: Path, shape: FeatureShape, num_images: int, num_views: int, writable: bool = False
    ) -> None:
        self.num_views = num_views
        stored = tuple(shape.shape[dim] for dim in shape.dim_order)
        mapped = map_numbers(file, np.dtype(np.uint8), (shape.num_bytes * num_images * num_views,), writable)
        self._values = torch.from_numpy(mapped).view(shape.dtype).view(num_views, num_images, *stored)
        self._back = [0, *(1 + shape.dim_order.index(dim) for dim in range(len(stored)))]
        self._forth = [0, *(1 + dim for dim in shape.dim_order)]

    def put(self, view: int, indices: Tensor, features: Tensor) -> None:
        """Store ``features [B, ...]`` of the images ``indices [B]``."""
        self._values[view].index_copy_(0, indices, features.permute(self._forth).cpu())

    def get(self, view: int, indices: Tensor) -> Tensor:
        """The features ``[B, ...]`` of the images ``indices [B]``, a copy, in the memory format they came in."""
        return self._values[view].index_select(0, indices).permute(self._back)


def find_features(
    cache: BoundedCache, key: str, shape: FeatureShape, num_images: int, num_views: int
) -> StoredFeatures | None:
    """Features that an earlier run has stored; None if there are none. A damaged file is removed."""
    return cache.load(key, lambda folder: StoredFeatures(folder / _FILE, shape, num_images, num_views))


def compute_features(
    cache: BoundedCache,
    key: str,
    shape: FeatureShape,
    passes: Sequence[Pass],
    function: Callable[[Batch], Tensor],
    should_stop: Callable[[], bool],
    machine: Ranks,
) -> StoredFeatures | NoRoom | NotKept | None:
    """Run a function over all images in all views, and store what it gives; the machine's processes share the work.

    Args:
        cache: where.
        key: a hash of all that the features depend on.
        shape: of one image's features.
        passes: one over all images for each view.
        function: a batch of images → features ``[B, ...]``.
        should_stop: asked after every batch; then the result is None.
        machine: the processes that build this entry together, on one disk.

    Raises:
        OSError: the cache's folder cannot be written to any more.
    """
    num_images, num_views = sum(map(len, passes[0].indices)), len(passes)
    num_bytes = shape.num_bytes * num_images * num_views
    try:
        with ExitStack() as stack:
            building = cache.building(key, num_bytes)
            folder = machine.broadcast_from_rank0(lambda: _begin(stack, building, num_bytes))
            if not isinstance(folder, Path):
                return folder
            stored = StoredFeatures(folder / _FILE, shape, num_images, num_views, writable=True)
            own = [batches.shared(machine.share) for batches in passes]
            was_stopped = False
            with progress(total=sum(map(len, own)), desc="frozen stages", unit="batch") as bar:
                for view, batch in ((view, batch) for view, batches in enumerate(own) for batch in batches):
                    stored.put(view, batch.indices, function(batch))
                    bar.update()
                    if was_stopped := should_stop():
                        break
            if any(machine.all_reduce_max(was_stopped)):
                raise _Stopped
    except _Stopped:
        return None
    return stored


def _begin(
    stack: ExitStack, building: AbstractContextManager[Path | NoRoom], num_bytes: int
) -> Path | NoRoom | NotKept:
    """Make the file, in its full size, where there is room for it; every process learns if it cannot be made."""
    try:
        with ExitStack() as undo:
            folder = undo.enter_context(building)
            if not isinstance(folder, NoRoom):
                with (folder / _FILE).open("wb") as file:
                    file.truncate(num_bytes)
                    if hasattr(os, "posix_fallocate"):  # not on macOS
                        # Without this a disk that fills up later would end the process with a bus error.
                        os.posix_fallocate(file.fileno(), 0, num_bytes)
            stack.push(undo.pop_all())
    except OSError as error:
        return NotKept(error.strerror or str(error))
    return folder


class _Stopped(Exception):
    """Leaves a folder that is being built without publishing it."""
