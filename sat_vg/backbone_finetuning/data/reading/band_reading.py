"""Images that are read once, in order: decoded and transformed in threads, a few ahead of who takes them."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

from torch import Tensor, nn

from sat_vg.backbone_finetuning.data.reading.decoding import RGB_DECODER, Decoder
from sat_vg.backbone_finetuning.utils.cores import usable_cores


def read_in_order(
    paths: Iterable[str], transform: nn.Module, ahead: int, decoder: Decoder = RGB_DECODER
) -> Iterator[Tensor | str]:
    """Decode and transform images; the decoders and resizing leave Python's lock, so threads do.

    Args:
        paths: image files.
        transform: ``[C, height, width]`` → ``[C, H, W]``.
        ahead: images that are held at the most, 1 or more.
        decoder: how they are decoded.

    Yields:
        For each path its image as ``transform`` gives it, or the reason why the file cannot be read.
    """

    def read(path: str) -> Tensor | str:
        image = decoder.read_or_reason(path)
        return image if isinstance(image, str) else transform(image)

    remaining = iter(paths)
    waiting: deque[Future[Tensor | str]] = deque()
    pool = ThreadPoolExecutor(min(32, usable_cores()), thread_name_prefix="read-images")
    try:
        while True:
            waiting.extend(pool.submit(read, path) for path in islice(remaining, ahead - len(waiting)))
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
