"""Replicas of the model: one process alone, or data parallel with averaged gradients and statistics."""

import gc
import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from sat_vg.backbone_finetuning.data.loading.loaders import Batch
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.training.batch_sources import SizedBatches
from sat_vg.backbone_finetuning.utils.ranks import Ranks, SingleProcess
from sat_vg.backbone_finetuning.utils.stop_signals import InterruptRequest

# Rank 0's buffers are not handed round before each step: they have been averaged. The argument has a new name.
_NAMES = inspect.signature(DistributedDataParallel).parameters
_KEEP_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in _NAMES else "broadcast_buffers": False
}

Outputs = Callable[[Tensor, int], tuple[tuple[float, Tensor], ...]]


class Replica(Protocol):
    """One process's model, synchronised with those of the others; the default bodies are for one process alone.

    Attributes:
        ranks: the processes that train together.
    """

    ranks: Ranks

    def enter_phase(self) -> None:
        """Rebuild what depends on which parameters are trained."""

    def outputs(self, values: Tensor, start: int) -> tuple[tuple[float, Tensor], ...]:
        """Weighted logits of this process's images, or of features after the first ``start`` stages."""

    def accumulating(self, is_last: bool) -> AbstractContextManager[None]:
        """Context of a part of the batch; with the last one the gradients are averaged over the processes."""
        return nullcontext()

    def sync_buffers(self) -> None:
        """Average over the processes the running statistics that this step has moved."""

    def num_images_to_split(self, own: int, num_images: int) -> int:
        """Number of images from which the number of micro-batches follows.

        Args:
            own: images of this process's share of a batch.
            num_images: of the whole batch.
        """
        return own

    def lockstep_batches(self, batches: SizedBatches, interrupt: InterruptRequest) -> Iterator[Batch]:
        """This process's batches, which the model is run on without gradients, until a stop is requested."""
        for batch in batches:
            yield batch
            if interrupt.requested:
                return


class SingleReplica(Replica):
    """The model of a single process.

    Args:
        outputs: ``(values, number of stages already applied) ->`` what ``FineTuneModel.training_outputs`` gives.
    """

    def __init__(self, outputs: Outputs) -> None:
        self._outputs, self.ranks = outputs, SingleProcess()

    def enter_phase(self) -> None:
        """Do nothing."""

    def sync_buffers(self) -> None:
        """Do nothing."""

    def outputs(self, values: Tensor, start: int) -> tuple[tuple[float, Tensor], ...]:
        """Weighted logits of images, or of features after the first ``start`` stages."""
        return self._outputs(values, start)


class _TrainingOutputs(nn.Module):
    """A model with its outputs in training as the forward pass."""

    def __init__(self, model: FineTuneModel, outputs: Outputs) -> None:
        super().__init__()
        self.model, self._outputs = model, outputs

    def forward(self, values: Tensor, start: int) -> tuple[tuple[float, Tensor], ...]:
        return self._outputs(values, start)


class DataParallelReplica(Replica):
    """One of several copies that each compute a share of every batch (Li et al., 2020).

    The gradients are means over the processes, so each process's loss must count ``ranks.count`` times. Batch norm
    normalises with the images of its own process; its running statistics are the means over the processes.

    Args:
        model: on its device.
        outputs: as of ``SingleReplica``.
        ranks: the processes.
    """

    def __init__(self, model: FineTuneModel, outputs: Outputs, ranks: Ranks) -> None:
        self._model, self._outputs, self.ranks = model, outputs, ranks
        self._wrapped: DistributedDataParallel | None = None

    def enter_phase(self) -> None:
        """Rebuild DDP for the parameters that are trained now: drop the wrapper of the phase before."""
        self._wrapped = None
        gc.collect()  # its hooks on the parameters go with it, and it refers to itself

    @property
    def _copy(self) -> DistributedDataParallel:
        """The model, wrapped for the parameters trained now. Built by the first step: some phases have none."""
        if self._wrapped is None:
            self._wrapped = DistributedDataParallel(
                _TrainingOutputs(self._model, self._outputs), gradient_as_bucket_view=True, **_KEEP_BUFFERS
            )
        return self._wrapped

    def outputs(self, values: Tensor, start: int) -> tuple[tuple[float, Tensor], ...]:
        """Weighted logits of this process's images, or of features after the first ``start`` stages."""
        logits: tuple[tuple[float, Tensor], ...] = self._copy(values, start)
        return logits

    def accumulating(self, is_last: bool) -> AbstractContextManager[None]:
        """The context of a part of the batch; with the last one the gradients are added up over the processes."""
        return nullcontext() if is_last else self._copy.no_sync()

    def sync_buffers(self) -> None:
        """Average the running statistics that this step has moved."""
        average_statistics(self._model, self.ranks)


@torch.no_grad()
def average_statistics(model: nn.Module, ranks: Ranks) -> None:
    """Average over the processes the running statistics of batch norm that a step has moved, in one message."""
    statistics = [
        buffer
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.training and module.running_mean is not None
        for buffer in (module.running_mean, module.running_var)
        if buffer is not None
    ]
    if not statistics:
        return
    flat = torch.cat([buffer.flatten() for buffer in statistics])
    ranks.all_reduce_sum(flat)
    flat /= ranks.count
    parts = flat.split([buffer.numel() for buffer in statistics])
    torch._foreach_copy_(statistics, [part.view_as(b) for part, b in zip(parts, statistics, strict=True)])
