"""Images of several requests through the model at once: whatever waits when the model is free is the next batch."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import torch
from torch import Tensor

Outputs: TypeAlias = tuple[Tensor, Tensor]


class Batches:
    """Collects images and runs ``compute`` on batches of up to ``size``, in one thread."""

    def __init__(self, compute: Callable[[Tensor], Outputs], size: int) -> None:
        self._compute, self._size = compute, size
        self._waiting: asyncio.Queue[tuple[Tensor, asyncio.Future[Outputs]]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    async def outputs_of(self, image: Tensor) -> Outputs:
        """What ``compute`` gives for an image ``[C, H, W]``, once a batch with it has run."""
        future: asyncio.Future[Outputs] = asyncio.get_running_loop().create_future()
        await self._waiting.put((image, future))
        return await future

    async def run(self) -> None:
        """Run batches until this is cancelled."""
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < self._size and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            batch = [(image, future) for image, future in batch if not future.cancelled()]
            if batch:
                await self._run_one(batch)

    async def _run_one(self, batch: list[tuple[Tensor, "asyncio.Future[Outputs]"]]) -> None:
        images = torch.stack([image for image, _ in batch])
        try:
            first, second = await asyncio.get_running_loop().run_in_executor(self._thread, self._compute, images)
        except Exception as error:  # noqa: BLE001 - whatever it is, each of the requests has to hear of it
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), *outputs in zip(batch, first, second, strict=True):
            if not future.done():
                future.set_result((outputs[0], outputs[1]))
