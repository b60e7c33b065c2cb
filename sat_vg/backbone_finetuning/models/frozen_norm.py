"""Batch norm that never moves: statistics, scale and shift stay as they are, whoever calls ``train()``."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """A ``BatchNorm2d`` that always computes with its running statistics and takes no gradient.

    It keeps the names, the dtype and the ``eps`` of the layer it stands for, and computes with the same
    operator, so its output equals that layer's in eval mode to the bit.
    """

    def forward(self, input: Tensor) -> Tensor:
        """``[B, C, H, W]`` → the same shape."""
        return functional.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> FrozenBatchNorm2d:
        """The frozen stand-in of ``norm``; it takes over the very tensors."""
        frozen = cls(norm.num_features, eps=norm.eps, momentum=norm.momentum, affine=norm.affine)
        frozen._parameters.update(norm._parameters)
        frozen._buffers.update(norm._buffers)
        for parameter in frozen.parameters():
            parameter.requires_grad_(False)
        return frozen


def freeze_batch_norm(module: nn.Module) -> None:
    """Replace every ``BatchNorm2d`` below ``module`` by its frozen stand-in."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d) and not isinstance(child, FrozenBatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d.of(child))
        else:
            freeze_batch_norm(child)
