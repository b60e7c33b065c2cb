"""The memory of a training step: what the graph keeps for the backward pass, by image, and what is fixed."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.utils.precision import Precision

_BATCHES = (2, 3)
_WASTE = 1.1  # allocators take more than the tensors need: 4 to 25 % on CPUs (docs/benchmarks/memory.md)
_BYTES_PER_TRAINED = 12  # its gradient and AdamW's two averages, fp32


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a training step.

    Attributes:
        fixed: weights, gradients, the optimizer's state, and copies of weights in another number format.
        per_image: activations that are kept for the backward pass, and the largest gradients of activations.
    """

    fixed: int
    per_image: int

    def of_batch(self, images: int) -> int:
        """Bytes of a step on so many images."""
        return self.fixed + images * self.per_image


def measure_step_memory(model: FineTuneModel, precision: Precision) -> StepMemory:
    """The memory of a step with AdamW, measured on two small batches without a backward pass.

    Args:
        model: on its device, set to the stages that are trained; its batch-norm statistics move. Tensors
            without values (``FakeTensorMode``) will do.
        precision: device and formats.
    """
    (small, largest), (larger, _) = (_kept(model.train(), precision, count) for count in _BATCHES)
    per_image = (larger - small) // (_BATCHES[1] - _BATCHES[0])
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    fixed = small - _BATCHES[0] * per_image + weights + _BYTES_PER_TRAINED * trained
    # While a layer is gone back through, the gradients of its output and of its input are there.
    return StepMemory(round(_WASTE * fixed), round(_WASTE * (per_image + 2 * largest // _BATCHES[0])))


def _kept(model: FineTuneModel, precision: Precision, count: int) -> tuple[int, int]:
    """Bytes of all tensors that autograd keeps but for the weights, and of the largest of them."""
    own = {_address(tensor) for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if _address(tensor) not in own:
            kept[_address(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    size, bands = model.preprocessing.image_size, len(model.preprocessing.bands)
    images = precision.place_images(torch.zeros(count, bands, size, size, device=precision.device))
    targets = torch.zeros(count, dtype=torch.int64, device=precision.device)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        with precision.autocast():
            outputs = model.training_outputs(images)
        loss = sum(weight * nn.functional.cross_entropy(logits.float(), targets) for weight, logits in outputs)
    # The graph, and with it every address, lives until here.
    total, largest = sum(kept.values()) + images.nbytes, max(kept.values(), default=0)
    del loss
    return total, largest


def _address(tensor: Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata  # also of tensors without values
    return address
