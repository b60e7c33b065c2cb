"""The memory of a training step: the most bytes of tensors that are there at a time, with none of them computed."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.utils.precision import Precision

_BATCHES = (4, 64)
_WASTE = 1.36  # bytes that a process grows by to those of its tensors: docs/benchmarks/memory.md
_BYTES_PER_TRAINED = 8  # AdamW's two averages, fp32


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a training step.

    Attributes:
        fixed: weights, gradients, the optimizer's state, and copies of weights in another number format.
        per_image: what is there of each image's activations and their gradients when most is.
    """

    fixed: int
    per_image: int

    def of_batch(self, images: int) -> int:
        """Bytes of a step on so many images."""
        return self.fixed + images * self.per_image


def measure_step_memory(model: FineTuneModel, precision: Precision) -> StepMemory:
    """The memory of a step with AdamW: of a forward and a backward pass on tensors without values, in two batches.

    Args:
        model: set to the stages that are trained; one ``without_values``.
        precision: device and formats.
    """
    small, large = (_most_bytes(model.train(), precision, count) for count in _BATCHES)
    per_image = (large - small) / (_BATCHES[1] - _BATCHES[0])
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    fixed = small - _BATCHES[0] * per_image + weights + _BYTES_PER_TRAINED * trained
    return StepMemory(round(_WASTE * fixed), round(_WASTE * per_image))


def forward_bytes_per_image(model: FineTuneModel, precision: Precision) -> int:
    """Bytes of an image's activations when most of them are there, in a forward pass without gradients.

    ``model`` is one ``without_values``.
    """
    small, large = (_most_forward_bytes(model.eval(), precision, count) for count in _BATCHES)
    return round(_WASTE * (large - small) / (_BATCHES[1] - _BATCHES[0]))


def without_values(model: nn.Module) -> FakeTensorMode:
    """Put tensors without values in place of a model's weights; by shapes and types alone any network takes seconds.

    Returns:
        The mode in which it can be run.
    """
    mode = FakeTensorMode()
    for module in model.modules():
        for key, weight in module._parameters.items():
            if weight is not None:
                module._parameters[key] = nn.Parameter(mode.from_tensor(weight.detach()), weight.requires_grad)
        for key, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[key] = mode.from_tensor(buffer)
    return mode


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that operations make, until they are freed.

    Attributes:
        now: those that are there.
        most: those that were there at a time.
    """

    now: int = 0
    most: int = 0

    def __init__(self) -> None:
        super().__init__()
        self._known: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """See ``TorchDispatchMode``."""
        outputs = func(*args, **(kwargs or {}))
        for output in tree_leaves(outputs):
            if isinstance(output, Tensor):
                self._note(output.untyped_storage())
        return outputs

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._known:
            self._known.add(key)
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, num_bytes: int) -> None:
        self._known.discard(key)
        self.now -= num_bytes


def _most_bytes(model: FineTuneModel, precision: Precision, count: int) -> int:
    """The most bytes at a time of a step on so many images, beside weights and the optimizer's state."""
    model.zero_grad(set_to_none=True)
    with _LiveBytes() as live:
        images = _images(model, precision, count)
        targets = torch.zeros(count, dtype=torch.int64, device=precision.device)
        with precision.autocast():
            outputs = model.training_outputs(images)
        losses = [weight * nn.functional.cross_entropy(logits.float(), targets) for weight, logits in outputs]
        torch.stack(losses).sum().backward()
    model.zero_grad(set_to_none=True)
    most: int = live.most
    return most


@torch.no_grad()
def _most_forward_bytes(model: FineTuneModel, precision: Precision, count: int) -> int:
    with _LiveBytes() as live:
        images = _images(model, precision, count)
        with precision.autocast():
            model.forward_pooled(images)
    most: int = live.most
    return most


def _images(model: FineTuneModel, precision: Precision, count: int) -> Tensor:
    size, bands = model.preprocessing.image_size, len(model.preprocessing.bands)
    return precision.place_images(torch.zeros(count, bands, size, size, device=precision.device))
