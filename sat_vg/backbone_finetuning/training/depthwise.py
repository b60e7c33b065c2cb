"""Gradients of depthwise convolutions in bf16 on a CPU, where torch's own take most of a training step."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sat_vg.backbone_finetuning.utils.precision import Precision

_WIDEST = 3  # oneDNN computes the weights' gradient of wider kernels one value at a time


def is_slow(weight: Tensor, stride: int) -> bool:
    """Whether torch computes a gradient of this depthwise convolution without vector instructions."""
    return stride > 1 or weight.shape[-1] > _WIDEST


def with_fast_depthwise(outputs: Callable[..., Any], network: nn.Module, precision: Precision) -> Callable[..., Any]:
    """``outputs``, with quicker gradients of the depthwise convolutions that ``network`` has.

    The forward pass is the same to the bit, the gradients are the same sums in another order. Left as they are:
    networks without such convolutions, other devices and number formats.
    """
    convolutions = (module for module in network.modules() if isinstance(module, nn.Conv2d))
    has_slow = any(
        conv.groups == conv.in_channels == conv.out_channels > 1 and is_slow(conv.weight, conv.stride[0])
        for conv in convolutions
    )
    if not has_slow or precision.device.type != "cpu" or precision.autocast_dtype is not torch.bfloat16:
        return outputs

    def with_mode(*args: Any, **kwargs: Any) -> Any:
        with _DepthwiseMode():
            return outputs(*args, **kwargs)

    return with_mode


class _DepthwiseMode(TorchFunctionMode):
    """While it is entered, depthwise convolutions with slow gradients are ``_DepthwiseConv``."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        result = None
        if func is torch.conv2d and torch.is_grad_enabled() and torch.is_autocast_enabled("cpu"):
            result = _conv2d(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if result is None else result


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    """The result of ``torch.conv2d``, which has these arguments; None where its own gradients are as quick."""
    (stride, *strides), (dilation, *dilations) = _pair(stride), _pair(dilation)
    is_depthwise = input.ndim == 4 and groups == input.shape[1] == weight.shape[0] > 1
    is_regular = not isinstance(padding, str) and strides == [stride] and dilations == [dilation] == [1]
    if not (is_depthwise and is_regular and is_slow(weight, stride) and type(weight) in (nn.Parameter, Tensor)):
        return None
    vertical, horizontal = _pair(padding)
    if vertical >= weight.shape[-2] or horizontal >= weight.shape[-1]:
        return None
    input, weight = input.to(torch.bfloat16), weight.to(torch.bfloat16)
    bias = None if bias is None else bias.to(torch.bfloat16)
    result: Tensor = _DepthwiseConv.apply(input, weight, bias, stride, (vertical, horizontal))
    return result


def _pair(value: Any) -> list[int]:
    return [value] * 2 if isinstance(value, int) else [*value] * (2 if len(value) == 1 else 1)


class _DepthwiseConv(torch.autograd.Function):
    """A depthwise convolution with dilation 1, input ``[B, C, H, W]``, weight ``[C, 1, KH, KW]``."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(input, weight, bias, stride, padding, 1, weight.shape[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        needs_input, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        grad = grad.contiguous(memory_format=torch.channels_last)
        return (
            input_gradient(grad, weight, input.shape[-2:], ctx.stride, ctx.padding) if needs_input else None,
            weight_gradient(grad, input, weight, ctx.stride, ctx.padding) if needs_weight else None,
            grad.sum((0, 2, 3)) if needs_bias else None,
            None,
            None,
        )


def input_gradient(grad: Tensor, weight: Tensor, size: torch.Size, stride: int, padding: tuple[int, int]) -> Tensor:
    """Gradient by the input: a convolution of ``grad``, with zeros between its values, with the kernel turned round.

    Args:
        grad: by the output, ``[B, C, OH, OW]``.
        weight: ``[C, 1, KH, KW]``.
        size: H, W of the input.
        stride: of both directions.
        padding: rows and columns of zeros on each side, fewer than KH and KW.

    Returns:
        ``[B, C, H, W]``.
    """
    batch, channels, *_ = grad.shape
    kernel = weight.shape[-2:]
    spread = grad.new_zeros(batch, size[0] + kernel[0] - 1, size[1] + kernel[1] - 1, channels)
    first = [k - 1 - p for k, p in zip(kernel, padding, strict=True)]
    rows, columns = (
        slice(start, start + (n - 1) * stride + 1, stride) for start, n in zip(first, grad.shape[-2:], strict=True)
    )
    spread[:, rows, columns] = grad.permute(0, 2, 3, 1)
    return F.conv2d(spread.permute(0, 3, 1, 2), weight.flip(-2, -1), groups=channels)


def weight_gradient(grad: Tensor, input: Tensor, weight: Tensor, stride: int, padding: tuple[int, int]) -> Tensor:
    """Gradient by the kernel, in strips of columns that are narrow enough for oneDNN's vector code.

    Args:
        grad: by the output, ``[B, C, OH, OW]``.
        input: ``[B, C, H, W]``.
        weight: ``[C, 1, KH, KW]``.
        stride: of both directions.
        padding: rows and columns of zeros on each side.

    Returns:
        ``[C, 1, KH, KW]``.
    """
    (height, width), (top, left) = input.shape[-2:], padding
    rows, columns = ((n - 1) * stride for n in grad.shape[-2:])
    strips = []
    for start in range(0, weight.shape[-1], _WIDEST):
        kernel = weight[..., start : start + _WIDEST].contiguous()
        sides = (start - left, columns + kernel.shape[-1] + start - left - width)  # what of the columns it sees
        seen = F.pad(input, (-sides[0], sides[1], top, rows + kernel.shape[-2] - top - height))
        _, strip, _ = torch.ops.aten.convolution_backward(
            grad, seen, kernel, None, [stride] * 2, [0, 0], [1, 1], False, [0, 0], len(weight), [False, True, False]
        )
        strips.append(strip)
    return torch.cat(strips, dim=-1)
