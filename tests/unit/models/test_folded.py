"""Batch norm folded into convolutions: the same maps within rounding, and nothing folded that must not be."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm

from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.models.folded import fold_batch_norm
from sat_vg.backbone_finetuning.models.stages import Stage


def unlike_new(module: nn.Module) -> nn.Module:
    """Batch norm with statistics, scale and shift that are not those of a fresh network."""
    torch.manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            if norm.running_mean is not None:
                norm.running_mean.normal_(0, 0.2)
                norm.running_var.uniform_(0.5, 2)
            if norm.weight is not None:
                nn.init.uniform_(norm.weight, 0.5, 1.5)
                nn.init.normal_(norm.bias, 0, 0.2)
    return module


def run(network, stages, images):
    with torch.no_grad():
        for stage in stages:
            images = stage.run(network, images)
    return images


@pytest.mark.parametrize(
    ("name", "num_pairs"),
    [
        ("resnet18", 20),
        ("mobilenet_v2", 52),
        ("shufflenet_v2_x0_5", 56),
        ("regnet_y_400mf", 53),
        ("densenet121", 59),  # the others stand before their convolution
        ("googlenet", 57),  # and two in auxiliary heads
        ("vit_b_32", 0),
        ("squeezenet1_1", 0),
        ("timm:resnet10t", 14),
        ("timm:efficientnet_lite0", 0),  # its norms hold an activation
    ],
)
def test_the_same_maps_within_rounding(name, num_pairs):
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    size = 32 if name == "vit_b_32" else 64
    model = FineTuneModel(name, 3, pretrained=False, image_size=size)
    network = unlike_new(model.network).eval().requires_grad_(False)
    images = torch.randn(2, 3, size, size)
    exact = run(network, model.stages, images)
    folded = fold_batch_norm(network, model.stages, torch.float32)
    if num_pairs == 0:
        assert folded is None
        return
    held = [sum(type(m) is nn.BatchNorm2d for m in of.modules()) for of in (network, folded)]
    assert held[0] - held[1] == num_pairs
    torch.testing.assert_close(run(folded, model.stages, images), exact, rtol=1e-4, atol=1e-4 * float(exact.std()))
    with torch.autocast("cpu", torch.bfloat16):
        folded = fold_batch_norm(network, model.stages, torch.bfloat16)
        errors = [(run(of, model.stages, images).float() - exact).norm() / exact.norm() for of in (network, folded)]
    assert errors[1] < max(1.5 * errors[0], 0.01)  # no further from fp32 than bf16 is anyway


class Block(nn.Module):
    """One convolution and one batch norm, with something done to its output between them or elsewhere."""

    def __init__(self, conv=None, norm=None, forward=None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1) if conv is None else conv
        self.norm = nn.BatchNorm2d(3) if norm is None else norm
        self.steps = forward or (lambda self, x: self.norm(self.conv(x)))

    def forward(self, x):
        return self.steps(self, x)


def hooked(forward_pre=False):
    block = Block()
    (block.conv.register_forward_pre_hook if forward_pre else block.norm.register_forward_hook)(lambda *_: None)
    return block


def in_place(self, x):
    x = self.conv(x)
    x.relu_()
    return self.norm(x)


def aliased():
    block = Block(forward=lambda self, x: self.norm(self.same(x)))
    block.same = block.conv
    return block


def patched():
    block = Block()
    block.conv.forward = lambda x: 2 * x
    return block


def overflowing():
    block = Block()
    block.norm.weight.data.fill_(1e7)
    return block


UNTOUCHED = {
    "no norm after it": lambda: Block(forward=lambda self, x: self.conv(x) + x),
    "output used twice": lambda: Block(forward=lambda self, x: (y := self.conv(x)) + self.norm(y)),
    "changed in place": lambda: Block(forward=in_place),
    "norm first": lambda: Block(forward=lambda self, x: self.conv(self.norm(x))),
    "something between": lambda: Block(forward=lambda self, x: self.norm(self.conv(x).relu())),
    "conv run twice": lambda: Block(forward=lambda self, x: self.norm(self.conv(self.conv(x)))),
    "norm run twice": lambda: Block(forward=lambda self, x: self.norm(self.conv(self.norm(x)))),
    "weights read": lambda: Block(forward=lambda self, x: self.norm(self.conv(x)) * self.conv.weight.sum()),
    "two names": aliased,
    "no statistics": lambda: Block(norm=nn.BatchNorm2d(3, track_running_stats=False)),
    "transposed": lambda: Block(conv=nn.ConvTranspose2d(3, 3, 3, padding=1)),
    "parametrised": lambda: Block(conv=parametrizations.spectral_norm(nn.Conv2d(3, 3, 3))),
    "spectral norm by a hook": lambda: Block(conv=spectral_norm(nn.Conv2d(3, 3, 3))),
    "subclass": lambda: Block(norm=type("Norm", (nn.BatchNorm2d,), {"forward": lambda self, x: x})(3)),
    "forward hook": hooked,
    "pre-hook": lambda: hooked(forward_pre=True),
    "forward replaced": patched,
    "control flow": lambda: Block(forward=lambda self, x: self.norm(self.conv(x)) if x.sum() > 0 else x),
    "too large for float16": overflowing,
}
ONE = (Stage("one", ("0",)),)


@pytest.mark.parametrize("kind", UNTOUCHED)
def test_left_as_it_is(kind):
    network = nn.Sequential(UNTOUCHED[kind]()).eval().requires_grad_(False)
    assert fold_batch_norm(network, ONE, torch.float16) is None


@pytest.mark.parametrize("part", ["conv", "norm"])
def test_what_is_in_training_mode_is_left(part):
    network = nn.Sequential(Block()).eval()
    getattr(network[0], part).train()
    assert fold_batch_norm(network, ONE, torch.float32) is None


def test_a_layer_of_two_stages_is_left():
    network = nn.Sequential(Block()).eval()
    assert fold_batch_norm(network, (*ONE, Stage("two", ("0.conv",))), torch.float32) is None


@pytest.mark.parametrize("conv", [{"bias": False}, {"groups": 3}, {"padding_mode": "reflect"}])
@pytest.mark.parametrize("affine", [True, False])
def test_kinds_of_both_layers(conv, affine):
    block = Block(nn.Conv2d(3, 3, 3, padding=1, **conv), nn.BatchNorm2d(3, affine=affine))
    network = unlike_new(nn.Sequential(block)).eval()
    folded = fold_batch_norm(network, ONE, torch.float32)
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(run(folded, ONE, images), run(network, ONE, images))


def test_one_stage_that_cannot_be_traced_leaves_the_others_and_tensors_are_shared():
    network = nn.Sequential(UNTOUCHED["control flow"](), Block(), nn.Conv2d(3, 3, 1)).eval()
    stages = (*ONE, Stage("two", ("1",)))
    folded = fold_batch_norm(network, stages, torch.bfloat16)
    assert folded[0] is network[0]
    assert folded[2] is network[2]
    assert type(folded[1].norm) is nn.Identity
    assert type(network[1].norm) is nn.BatchNorm2d
    assert {p.dtype for p in folded[1].parameters()} == {torch.bfloat16}


def test_a_model_shows_nothing_of_it_and_drops_it_when_a_stage_is_unfrozen():
    model = FineTuneModel("resnet18", 3, pretrained=False, image_size=32)
    unlike_new(model.network)
    model.train_from("layer4")
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.randn(4, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        plain = model.run_frozen(images)
        model.fold_frozen(torch.bfloat16)
        assert model.is_folded
        folded = model.run_frozen(images)
        assert not torch.equal(folded, plain)
        assert torch.equal(folded, copy.deepcopy(model).run_frozen(images))
        # The trained stages are those of the network: their gradients and statistics arrive there.
        model.training_outputs(images)[0][1].sum().backward()
        moved = {
            name.split(".")[1] for name, value in model.state_dict().items() if not torch.equal(value, before[name])
        }
        assert moved == {"layer4"}
        assert {name.split(".")[1] for name, p in model.named_parameters() if p.grad is not None} == {"layer4", "fc"}
        assert model.state_dict().keys() == before.keys()
        model.train_from("layer3")
        assert not model.is_folded
        model.fold_frozen(torch.float32)
        assert not model.is_folded
        model.set_trainable(model.stage_names)
        model.fold_frozen(torch.bfloat16)  # nothing is frozen
        assert not model.is_folded


def test_compiled_it_gives_the_same():
    torch._dynamo.reset()
    model = FineTuneModel("custom_cnn", 3, pretrained=False, image_size=32)
    unlike_new(model.network)
    model.set_trainable(())
    model.train()
    compiled = torch.compile(model.training_outputs, backend="aot_eager")
    images = torch.randn(2, 3, 32, 32)
    for fold in (False, True, False):
        model.fold_frozen(torch.bfloat16 if fold else torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            ((_, mine),), ((_, theirs),) = compiled(images), model.training_outputs(images)
        torch.testing.assert_close(mine, theirs)
