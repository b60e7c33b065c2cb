"""Frozen batch norm: the layer's numbers to the bit, and nothing that walks over a model moves it."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn
from torchvision.ops.misc import FrozenBatchNorm2d as TorchvisionFrozen

from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.models.frozen_norm import FrozenBatchNorm2d, freeze_batch_norm

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def model_with_statistics(name: str = "resnet18") -> FineTuneModel:
    model = FineTuneModel(name, 3, pretrained=False, image_size=64).eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
    return model


def converted(extractor: nn.Module) -> nn.Module:
    consumer: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(extractor))
    return consumer[0]


def averaged(extractor: nn.Module) -> nn.Module:
    update_bn([IMAGES], extractor)
    return extractor


def unfrozen(extractor: nn.Module) -> nn.Module:
    return extractor.requires_grad_(True)


def switched(extractor: nn.Module) -> nn.Module:
    """As people switch batch norms to training, for example after freezing everything."""
    for module in extractor.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)):
            module.train()
            module.reset_running_stats()
    return extractor


@pytest.mark.parametrize("walk", [converted, averaged, unfrozen, switched])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "timm:resnet10t"])
def test_what_walks_over_batch_norms_leaves_frozen_ones_alone(name, walk):
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    extractor = model_with_statistics(name).get_feature_extractor()
    before = {key: value.clone() for key, value in extractor.named_buffers()}
    with torch.no_grad():
        expected = list(extractor(IMAGES).values())
    walked = walk(extractor).train()
    sum(features.mean() for features in walked(IMAGES).values()).backward()
    changed = [
        key for key, value in walked.state_dict().items() if key in before and not torch.equal(value, before[key])
    ]
    assert not changed
    norms = [module for module in walked.modules() if isinstance(module, FrozenBatchNorm2d)]
    assert norms
    assert not any(list(norm.parameters()) for norm in norms)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(walked.eval()(IMAGES).values(), expected, strict=True))


@pytest.mark.parametrize("walk", [converted, averaged])
def test_norms_of_frozen_stages_too_where_the_others_are_trained(walk):
    extractor = model_with_statistics().get_feature_extractor(trainable_stages=["layer4"], freeze_norm=False)
    before = {key: value.clone() for key, value in extractor.state_dict().items()}
    walked = walk(extractor).train()
    walked(IMAGES)
    moved = {key.split(".")[0] for key, value in walked.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {"layer4"}


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.BatchNorm1d(6), (4, 6)),
        (nn.BatchNorm1d(6, eps=1e-3), (4, 6, 5)),
        (nn.BatchNorm2d(6), (2, 6, 4, 4)),
        (nn.BatchNorm2d(6, affine=False), (2, 6, 4, 4)),
        (nn.BatchNorm2d(6, track_running_stats=False), (2, 6, 4, 4)),
        (nn.BatchNorm3d(6), (2, 6, 3, 4, 4)),
        (nn.SyncBatchNorm(6), (2, 6, 4, 4)),
    ],
    ids=["1d", "1d sequences", "2d", "no scale", "no statistics", "3d", "synchronised"],
)
def test_every_kind_gives_what_it_gave_in_eval_mode(norm, shape):
    if norm.track_running_stats:
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    values = torch.randn(shape)
    expected, names = norm.eval()(values), list(norm.state_dict())
    holder = nn.Sequential(norm)
    freeze_batch_norm(holder, {norm})
    assert isinstance(holder[0], FrozenBatchNorm2d)
    assert torch.equal(holder.train()(values), expected)
    assert list(holder[0].state_dict()) == names


def test_state_dicts_go_both_ways_with_and_without_the_count_of_batches():
    norm = nn.BatchNorm2d(4)
    norm.running_mean.uniform_(-1, 1)
    frozen = FrozenBatchNorm2d(copy.deepcopy(norm))
    norm.load_state_dict(frozen.state_dict(), strict=True)
    frozen.load_state_dict(norm.state_dict(), strict=True)
    theirs = TorchvisionFrozen(4)
    theirs.load_state_dict(frozen.state_dict(), strict=True)
    state = theirs.state_dict()
    state["running_mean"] = torch.arange(4.0)
    frozen.load_state_dict(state, strict=True)
    assert "num_batches_tracked" not in state  # what is handed over is not written to
    assert torch.equal(frozen.running_mean, torch.arange(4.0))
    assert frozen.half().running_var.dtype == torch.float16
