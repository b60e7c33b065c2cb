"""Gradients of depthwise convolutions: torch's own sums, in a training that computes in bf16 on a CPU."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.training.assembly import replica_of
from sat_vg.backbone_finetuning.training.depthwise import input_gradient, weight_gradient, with_fast_depthwise
from sat_vg.backbone_finetuning.utils.precision import Precision
from sat_vg.backbone_finetuning.utils.ranks import SingleProcess

CPU = torch.device("cpu")
BF16 = Precision(CPU, torch.bfloat16)
OWN = "_DepthwiseConvBackward"


def nodes(result: Tensor) -> set[str]:
    """Names of all operations behind a result."""
    found, waiting = set(), [result.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [before for before, _ in node.next_functions]
    return {node.name() for node in found}


@pytest.mark.parametrize("kernel", [(1, 1), (2, 2), (3, 3), (3, 5), (4, 4), (5, 5), (5, 3), (7, 7)])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_gradients_are_those_of_torch(kernel: tuple[int, int], stride: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for (top, left), size in product(product(range(kernel[0]), range(kernel[1])), ((9, 12), (8, 7), (11, 11))):
        image, weight = (
            torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((2, 5, *size), (5, 1, *kernel))
        )
        image.requires_grad = weight.requires_grad = True
        result = F.conv2d(image, weight, None, stride, (top, left), groups=5)
        grad = torch.randn(result.shape, generator=generator, dtype=torch.float64)
        result.backward(grad)
        by_input = input_gradient(grad, weight, image.shape[-2:], stride, (top, left))
        by_weight = weight_gradient(grad, image.detach(), weight.detach(), stride, (top, left))
        torch.testing.assert_close(by_input, image.grad)
        torch.testing.assert_close(by_weight, weight.grad)


@pytest.mark.parametrize(
    ("stride", "width", "padding", "has_bias"),
    [
        (1, 5, 0, True),
        (1, 5, (1, 2), False),
        (1, 5, "same", True),
        (2, 3, 0, False),
        (2, 3, 1, True),
        (1, 3, 1, True),
    ],
)
def test_one_layer_in_bf16(stride: int, width: int, padding: object, has_bias: bool) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 6, (3, width), stride, padding, groups=6, bias=has_bias)
    network = nn.Sequential(nn.Conv2d(3, 6, 1), conv)
    images = torch.randn(4, 3, 10, 12)
    found = []
    for run in (network, with_fast_depthwise(network, network, BF16)):
        network.zero_grad()
        with BF16.autocast():
            result = run(images)
        result.float().square().mean().backward()
        found.append((result.detach(), [p.grad for p in network.parameters()], nodes(result)))
    (theirs, their_grads, _), (ours, our_grads, names) = found
    assert (OWN in names) == (padding != "same" and (stride > 1 or width > 3))
    assert torch.equal(ours, theirs)
    torch.testing.assert_close(our_grads, their_grads, rtol=2e-2, atol=2e-4)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(6, 6, 5, dilation=2, padding=4, groups=6),
        nn.Conv2d(6, 12, 5, groups=6),
        nn.Conv2d(6, 6, 5, groups=3),
        nn.Conv2d(6, 6, 3, stride=(2, 1), groups=6),
    ],
)
def test_other_convolutions_are_torchs(conv: nn.Conv2d) -> None:
    network = nn.Sequential(conv, nn.Conv2d(conv.out_channels, conv.out_channels, 5, groups=conv.out_channels))
    with BF16.autocast():
        result = with_fast_depthwise(network, network, BF16)(torch.randn(2, 6, 20, 20))
    behind = [before for before, _ in result.grad_fn.next_functions]
    assert result.grad_fn.name() == OWN
    assert OWN not in {node.name() for node in behind}


class InFloat32(nn.Conv2d):
    """A layer that keeps itself out of autocast."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.float())


def test_a_layer_that_switches_autocast_off_stays_in_float32() -> None:
    network = nn.Sequential(InFloat32(6, 6, 5, groups=6))
    with BF16.autocast():
        result = with_fast_depthwise(network, network, BF16)(torch.randn(2, 6, 12, 12))
    assert result.dtype is torch.float32
    assert OWN not in nodes(result)


def test_only_where_it_is_needed() -> None:
    depthwise, plain = (nn.Sequential(nn.Conv2d(4, 4, 3, 2, groups=groups)) for groups in (4, 1))
    assert with_fast_depthwise(depthwise, depthwise, Precision(CPU, torch.float32)) is depthwise
    assert with_fast_depthwise(depthwise, depthwise, Precision(torch.device("meta"), torch.bfloat16)) is depthwise
    assert with_fast_depthwise(plain, plain, BF16) is plain


@pytest.mark.parametrize("backbone", ["mobilenet_v2", "timm:tf_efficientnet_lite0"])
def test_a_training_uses_them(backbone: str) -> None:
    if backbone.startswith("timm:"):
        pytest.importorskip("timm")
    model = FineTuneModel(backbone, 3, pretrained=False, image_size=32).train()
    replica = replica_of(FinetuneConfig(backbone=backbone), model, BF16, SingleProcess())
    with BF16.autocast():
        ((_, logits),) = replica.outputs(torch.randn(2, 3, 32, 32), 0)
    assert OWN in nodes(logits)
    logits.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
