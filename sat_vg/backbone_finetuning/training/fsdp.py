"""FSDP: each process holds a shard of every weight, its gradient and its optimizer state.

FSDP2 of torch (``fully_shard``; Zhao et al., 2023, after Rajbhandari et al., 2020): the weights of one module after
another are gathered for as long as it computes, forwards and backwards.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from sat_vg.backbone_finetuning.data.loading.loaders import Batch
from sat_vg.backbone_finetuning.data.loading.sampling import BatchPlan, num_parts
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.models.stages import find_member
from sat_vg.backbone_finetuning.training.batch_sources import SizedBatches
from sat_vg.backbone_finetuning.training.replicas import Replica, average_statistics
from sat_vg.backbone_finetuning.utils.errors import ConfigError
from sat_vg.backbone_finetuning.utils.precision import Precision
from sat_vg.backbone_finetuning.utils.ranks import Ranks, Share
from sat_vg.backbone_finetuning.utils.stop_signals import InterruptRequest

_SMALLEST_UNIT = 10_000  # weights; fewer travel with the rest of the model


def precision_for_fsdp(precision: Precision, ranks: Ranks) -> Precision:
    """The formats of a run whose weights are in shards.

    Raises:
        ConfigError: there are no other processes to share the weights with, or the loss is scaled.
    """
    if ranks.count == 1:
        raise ConfigError(
            "shard_weights = True: the weights are divided among several processes, and this is one alone; start "
            "them by torchrun (torchrun --nproc_per_node 2 -m sat_vg.backbone_finetuning.train ...), or leave it out"
        )
    if precision.scaler().is_enabled():
        raise ConfigError(
            "shard_weights = True: float16 scales the loss, which was not tried with weights in shards; use "
            "--autocast_dtype bf16 where the GPU computes in it, or --mixed_precision false"
        )
    process = ", ".join(part for part in (precision.process, "weights in shards") if part)
    return replace(precision, memory_format=torch.contiguous_format, process=process)  # FSDP divides no channels_last


def apply_fsdp(model: FineTuneModel, device: torch.device, ranks: Ranks) -> None:
    """Divide a model's weights among the processes and move this one's part to its device.

    A GPU never holds more of them whole than one module's.

    Args:
        model: the same on each process, whole, on the CPU.
        device: of this process.
        ranks: the processes.
    """
    mesh = init_device_mesh(device.type, (ranks.count,))
    for module in (*units(model), model):
        # The model itself too, so that its parameters are shards between two passes.
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    for method in ("training_outputs", "vectors_and_logits"):
        register_fsdp_forward_method(model, method)


def units(model: FineTuneModel) -> list[nn.Module]:
    """The modules that are FSDP units; all other weights belong to the unit of the whole model.

    They are what stages call one after another. A stage with a forward pass of its own may reach into its modules
    and use weights of theirs without calling them, so it has no units.
    """
    called = [
        module
        for stage in model.stages
        if stage.forward is None
        for member in stage.members
        for module in _links(find_member(model.network, member))
    ]
    return [module for module in called if sum(p.numel() for p in module.parameters()) >= _SMALLEST_UNIT]


def _links(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of a chain, which calls them one after another; any other module as it is."""
    if type(module) is not nn.Sequential:
        yield module
        return
    for child in module:
        yield from _links(child)


class FSDPReplica(Replica):
    """The model of one of several processes that hold its weights together.

    Gradients are means over the processes, as with ``DataParallelReplica``. Every pass through the model puts weights
    together, so all processes have to make the same number of them, in the same order.

    Args:
        model: in shards.
        device: of this process.
        ranks: the processes.
    """

    def __init__(self, model: FineTuneModel, device: torch.device, ranks: Ranks) -> None:
        self._model, self._device, self.ranks = model, device, ranks

    def enter_phase(self) -> None:
        """Do nothing."""

    def outputs(self, values: Tensor, start: int) -> tuple[tuple[float, Tensor], ...]:
        """Weighted logits of this process's images, or of features after the first ``start`` stages."""
        return self._model.training_outputs(values, start)

    # Gradients are added up over the processes with every part of a batch: until then they are whole, and to wait
    # for the last part would keep all of them so.

    def sync_buffers(self) -> None:
        """Average the running statistics that this step has moved."""
        average_statistics(self._model, self.ranks)

    def num_images_to_split(self, own: int, num_images: int) -> int:
        """The images of the largest share, for all processes."""
        return max(share_sizes(num_images, self.ranks.count))

    def lockstep_batches(self, batches: SizedBatches, interrupt: InterruptRequest) -> Iterator[Batch]:
        """This process's batches, and as many passes more as others need its shards for."""
        own = iter(batches)
        (most,) = self.ranks.all_reduce_max(len(batches))
        for number in range(most):
            if number < len(batches):
                yield next(own)
            else:
                self._idle_pass()
            if any(self.ranks.all_reduce_max(interrupt.requested)):
                return

    def _idle_pass(self) -> None:
        preprocessing = self._model.preprocessing
        size = preprocessing.image_size
        image = torch.zeros(1, self._model.in_channels, size, size, dtype=torch.uint8, device=self._device)
        self._model(preprocessing.normalise(image))


def share_sizes(num_images: int, count: int) -> list[int]:
    """How many images of a batch each of so many processes computes."""
    return [len(Share(rank, count).of_batch(range(num_images))) for rank in range(count)]


def fewest_at_once(plan: BatchPlan, micro_batch_size: int, count: int) -> int:
    """The fewest images that go through the model at once, if all processes use as many micro-batches.

    Raises:
        ConfigError: some process has fewer images than parts.
    """
    shares = [share_sizes(size, count) for size in plan.batch_sizes]
    fewest = min(min(sizes) // num_parts(max(sizes), micro_batch_size) for sizes in shares)
    if fewest == 0:
        raise ConfigError(
            f"micro_batch_size = {micro_batch_size}: with weights in shards all {count} processes divide their share "
            f"of a batch into as many parts, and the shares are {' and '.join(map(str, shares[0]))} images; raise it "
            f"to 2 or more, or take a batch_size that is a multiple of {2 * count}"
        )
    return fewest
