"""Micro-batches: how many images go through the model at once, halved where memory runs out."""

import gc
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sat_vg.backbone_finetuning.data.loading.sampling import num_parts
from sat_vg.backbone_finetuning.utils.errors import DeviceMemoryError
from sat_vg.backbone_finetuning.utils.terminal import say

Result = TypeVar("Result")
_CPU_TEXTS = ("DefaultCPUAllocator", "could not create a primitive")


class MicroBatches:
    """Divides batches into parts that fit into memory; the optimizer's batch stays what it is.

    Args:
        size: images at once.
        may_shrink: False where other processes wait for this one's gradients: a part cannot be run again then.

    Attributes:
        size: images at once, now.
    """

    def __init__(self, size: int, may_shrink: bool = True) -> None:
        self.size, self._may_shrink = size, may_shrink

    def run_with_oom_retry(self, batch_size: int, run: Callable[[int], Result], undo: Callable[[], None]) -> Result:
        """Run a batch in parts; where the memory is too small, undo, halve the parts, and run it again.

        Args:
            batch_size: images of the batch.
            run: the work, in so many parts.
            undo: brings back the state from before an attempt that failed.

        Raises:
            DeviceMemoryError: the memory is too small, and the parts may not shrink.
            RuntimeError: the memory is too small even for the smallest parts; or another error of the work.
        """
        while True:
            parts = num_parts(batch_size, self.size)
            largest = -(-batch_size // parts)
            try:
                return run(parts)
            except (RuntimeError, MemoryError) as error:
                smaller = max(1, largest // 2)
                if not is_out_of_memory(error) or num_parts(batch_size, smaller) == parts:
                    raise
                if not self._may_shrink:
                    raise DeviceMemoryError(
                        f"the memory is too small for {largest} images at once in one of several processes, which "
                        f"cannot go on alone; --micro_batch_size {smaller} accumulates to the same batch"
                    ) from error
            # Outside of the handler, which keeps the failed attempt's tensors alive.
            undo()
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.size = smaller
            say(
                f"the memory is too small for {largest} images at once: going on with {smaller}, and accumulating to "
                f"the same batch. To begin so: --micro_batch_size {smaller}"
            )


class RestorePoint:
    """Undoes forward and backward passes: gradients, and changes of buffers.

    Dropout needs nothing: every attempt at a step seeds its generators anew. Buffers are looked up once and copied
    together, in a few launches on a GPU.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        own: dict[torch.dtype, list[Tensor]] = {}
        for buffer in model.buffers():
            own.setdefault(buffer.dtype, []).append(buffer)
        self._buffers = [(few, [torch.empty_like(one) for one in few]) for few in own.values()]

    @torch.no_grad()
    def take(self) -> "RestorePoint":
        """Keep the buffers as they are now, kilobytes; no parameter has a gradient."""
        for own, kept in self._buffers:
            torch._foreach_copy_(kept, own)
        return self

    @torch.no_grad()
    def bring_back(self) -> None:
        """The state of ``take``."""
        self._optimizer.zero_grad(set_to_none=True)
        for own, kept in self._buffers:
            torch._foreach_copy_(own, kept)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch says that there is too little memory, on a GPU or on the CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # The CPU's allocator and oneDNN's have no class of their own.
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _CPU_TEXTS)
