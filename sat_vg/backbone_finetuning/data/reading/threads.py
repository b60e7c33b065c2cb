"""Work on many images in threads, results in order: decoders and resizing leave Python's lock."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from itertools import islice
from typing import Any, TypeVar

from torch import Tensor, nn
from tqdm import tqdm

from sat_vg.backbone_finetuning.data.reading.decoder import Decoder, Traits
from sat_vg.backbone_finetuning.data.reading.decoding import RGB_DECODER
from sat_vg.backbone_finetuning.utils.cores import usable_cores

_BATCH = 64  # images per task: a task costs some 50 microseconds of bookkeeping, a small JPEG 100

T = TypeVar("T")


def run_in_order(
    paths: Iterable[str], work: Callable[[str], T], threads: int | None = None, bar: "tqdm[Any] | None" = None
) -> Iterator[T]:
    """What ``work`` makes of each path, in order; few are held at a time. ``bar`` shows how many are done."""
    threads = threads or _usable_threads()
    with nullcontext() if bar is None else bar:
        for results in _in_order(paths, lambda batch: [work(path) for path in batch], threads, _BATCH, 2 * threads):
            yield from results
            if bar is not None:
                bar.update(len(results))


def read_in_order(
    paths: Iterable[str],
    transform: nn.Module,
    ahead: int,
    decoder: Decoder = RGB_DECODER,
    traits: dict[str, Traits] | None = None,
) -> Iterator[Tensor | str]:
    """Decode and transform images: of each path its image ``[C, H, W]``, or the reason why the file cannot be read.

    Args:
        paths: image files.
        transform: ``[C, height, width]`` → ``[C, H, W]``.
        ahead: images that are held at the most, 1 or more.
        decoder: how they are decoded.
        traits: where those of images that left a choice are put, by path; of endless input nothing else is kept.
    """

    def read(batch: list[str]) -> Tensor | str:
        picture = decoder.examine(batch[0])
        if isinstance(picture, str):
            return picture
        if traits is not None and picture.traits.left_a_choice:
            traits[batch[0]] = picture.traits
        image: Tensor = transform(picture.pixels)
        return image

    return _in_order(paths, read, _usable_threads(), 1, ahead)


def _usable_threads() -> int:
    return min(32, usable_cores())


def _in_order(
    paths: Iterable[str], work: Callable[[list[str]], T], threads: int, batch_size: int, ahead: int
) -> Iterator[T]:
    """What ``work`` makes of each batch of paths, with ``ahead`` batches waiting or being worked on at the most."""
    remaining = iter(paths)
    waiting: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="read-images")
    try:
        while True:
            while len(waiting) < ahead and (batch := list(islice(remaining, batch_size))):
                waiting.append(pool.submit(work, batch))
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
