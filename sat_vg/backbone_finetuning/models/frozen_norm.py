"""Batch norm that never changes: statistics, scale and shift stay as they are, also after calls of ``train()``."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm


class FrozenBatchNorm2d(nn.Module):
    """Stands for a batch norm in eval mode, of any number of dimensions; all its tensors are buffers.

    It is no subclass of torch's batch norm, as torchvision's and DETR's frozen ones are none: what walks over a
    model's batch norms (``convert_sync_batchnorm``, ``swa_utils.update_bn``) or over its parameters leaves it alone.

    It keeps the names, the dtype and the ``eps`` of the layer it stands for, and computes with the same operator, so
    its output equals that layer's in eval mode to the bit. Layers inside that layer, such as the activation in timm's
    norms, are kept and run after it.
    """

    _version = 2  # that of torch's batch norm, so that their state dicts are alike in this too
    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        self.num_features, self.eps = norm.num_features, norm.eps
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            value: Tensor | None = getattr(norm, name)
            self.register_buffer(name, None if value is None else value.detach())
        for name, layer in norm.named_children():
            self.add_module(name, layer)

    def forward(self, input: Tensor) -> Tensor:
        """``[B, C, …]`` → the same shape."""
        value = functional.batch_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=self.running_mean is None,  # without statistics it is the batch's, in eval mode too
            eps=self.eps,
        )
        for layer in self.children():
            value = layer(value)
        return value

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"{self.num_features}, eps={self.eps}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # The frozen norms of torchvision and DETR keep no count of batches, and nothing here depends on it.
        if self.num_batches_tracked is not None:
            state_dict.setdefault(prefix + "num_batches_tracked", self.num_batches_tracked)
        super()._load_from_state_dict(state_dict, prefix, *args)


def freeze_batch_norm(module: nn.Module, wanted: Collection[nn.Module]) -> None:
    """Replace every batch norm below ``module`` that is among ``wanted`` by its frozen stand-in."""
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm) and child in wanted:
            setattr(module, name, FrozenBatchNorm2d(child))
        else:
            freeze_batch_norm(child, wanted)
