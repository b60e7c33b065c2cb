"""What every backbone must keep, whatever its family; one small member of each family runs through all of it.

By default those run that differ the most from each other. That stages compose to the network's own forward pass, that
frozen ones do not move, and that a model is saved and loaded to the bit is tested in ``test_every_backbone.py``.
"""

import copy
import pickle

import pytest
import torch
from contract.networks import SMALL, filled_network, model_on, slow_but

from sat_vg.backbone_finetuning.models.networks.table import BACKBONES

QUICK = [
    "resnet18", "densenet121", "mobilenet_v3_small", "shufflenet_v2_x0_5", "convnext_tiny", "vit_b_16", "swin_t",
    "squeezenet1_1", "googlenet", "custom_cnn",
]  # fmt: skip


@pytest.fixture(scope="module", params=slow_but(QUICK, SMALL))
def model(request):
    return model_on(filled_network, request.param, dropout=0.3).eval()


def test_the_small_ones_stand_for_all_families():
    assert {BACKBONES[name].family.name for name in SMALL} == {row.family.name for row in BACKBONES.values()}
    assert set(QUICK) <= set(SMALL), "a smaller one of its family has come: name it in QUICK in its place"


def images_for(model, count=2):
    side = model.preprocessing.image_size
    return torch.randn(count, 3, side, side)


def test_the_extractor_declares_what_it_gives(model):
    with_maps = tuple(stage.name for stage in model.stages if stage.gives_map)
    extractor = model.get_feature_extractor(out_names=with_maps)
    height, width = 100, 75  # others in test_every_backbone.py
    with torch.no_grad():
        maps = extractor(torch.randn(1, 3, height, width))
    assert tuple(maps) == extractor.out_names == with_maps
    for found, channels, stride in zip(maps.values(), extractor.channels, extractor.strides, strict=True):
        padded = [
            -(-max(side, extractor.smallest_image) // extractor.size_divisibility) * extractor.size_divisibility
            for side in (height, width)
        ]
        assert found.shape[:2] == (1, channels)
        # Rounded up or down: families pad and pool the border differently.
        least = 5 if model.backbone in ("alexnet", "inception_v3", "squeezenet1_1") else 2
        assert all(abs(n - side / stride) < least for n, side in zip(found.shape[2:], padded, strict=True))
    assert extractor.num_channels == extractor.channels[-1]


def test_no_stage_changes_the_map_of_an_earlier_one(model):
    extractor = model.get_feature_extractor(out_names=[stage.name for stage in model.stages if stage.gives_map])
    images = images_for(model, 1)
    with torch.no_grad():
        given = extractor(images.clone())
        value = images
        for stage in model.stages:
            value = stage.run(model.network, value).clone()
            if stage.gives_map:
                own = model.row.family.to_map(model.network, value, images.shape[-2:])
                assert torch.equal(given[stage.name], own), stage.name


def test_default_maps_are_the_last_of_every_stride(model):
    extractor = model.get_feature_extractor()
    others = {"vit_b_16": (16,), "alexnet": (8, 16, 32), "squeezenet1_1": (4, 8, 16), "custom_cnn": (4, 8, 16)}
    expected = others.get(model.backbone, (4, 8, 16, 32))
    assert extractor.strides == expected
    assert extractor.out_names[-1] == [stage.name for stage in model.stages if stage.gives_map][-1]


def test_train_after_freezing_keeps_the_mode_of_frozen_stages(model):
    model = copy.deepcopy(model)
    model.set_trainable(model.stage_names[-1:])
    model.train()
    assert not any(m.training for stage in model.stages[:-1] for m in stage.modules(model.network))
    assert any(m.training for m in model.stages[-1].modules(model.network))
    model.set_trainable(model.stage_names)
    model.train()
    assert all(m.training for m in model.modules())


def test_the_extractor_has_torchvisions_names(model):
    own = model.get_feature_extractor().state_dict()
    assert set(own) <= set(model.network.state_dict())
    left_out = set(model.network.state_dict()) - set(own)
    assert left_out
    heads = (model.row.family.classifier, *(head.module for head in model.row.family.auxiliary_heads))
    assert all(name.startswith(heads) for name in left_out)


def test_the_extractor_can_be_copied_and_pickled(model):
    extractor, images = model.get_feature_extractor(), torch.randn(1, 3, 112, 90)
    with torch.no_grad():
        expected = list(extractor(images).values())[-1]
        for other in (copy.deepcopy(extractor), pickle.loads(pickle.dumps(extractor))):
            assert torch.equal(list(other(images).values())[-1], expected)
            for parameter in other.parameters():
                parameter.zero_()
        assert torch.equal(list(extractor(images).values())[-1], expected)


def test_masks_mark_padding_at_each_map(model):
    extractor = model.get_feature_extractor()
    mask = torch.zeros(2, 100, 75, dtype=torch.bool)
    mask[1, 48:] = True
    with torch.no_grad():
        maps = extractor.forward_with_mask(torch.randn(2, 3, 100, 75), mask)
        tokens_mask, tokens = extractor.forward_tokens(torch.randn(2, 3, 100, 75), mask.int())
    for features, small in maps.values():
        assert small.dtype == torch.bool
        assert small.shape == (2, *features.shape[-2:])
        assert small[1, -1].all() or small.shape[1] == 1  # Inception's last map of so small an image has one row
        assert not small[0, 0, 0]
    last = maps[extractor.out_names[-1]]
    assert torch.equal(tokens_mask, last[1].flatten(1))
    assert tokens.shape == (last[0].shape[2] * last[0].shape[3], 2, extractor.num_channels)
    with pytest.raises(ValueError, match="mask has shape"):
        extractor.forward_with_mask(torch.randn(2, 3, 64, 64), mask)


def test_gradients_reach_the_first_stage_and_batch_norm_stays(model):
    extractor = model.get_feature_extractor()
    extractor.train()
    before = {name: value.clone() for name, value in extractor.named_buffers()}
    sum(m.square().mean() for m in extractor(images_for(model)).values()).backward()
    first = [p for _, p in extractor._stages[0].named_parameters(extractor) if p.requires_grad]
    assert first
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in first)
    assert all(torch.equal(value, before[name]) for name, value in extractor.named_buffers())
    assert all(p.grad is not None for p in extractor.parameters() if p.requires_grad)  # none waits in vain


def test_param_groups_cover_what_is_trained(model):
    names = model.stage_names[-2:]
    extractor = model.get_feature_extractor(trainable_stages=names)
    groups = extractor.param_groups(lr=1.0, decay=0.5)
    trained = [p for p in extractor.parameters() if p.requires_grad]
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in trained}
    rates = dict(zip(names, (0.5, 1.0), strict=True))  # a stage of nothing but frozen batch norm has no group
    assert groups
    assert [(group["name"], group["lr"]) for group in groups] == [
        (stage.name, rates[stage.name])
        for stage in model.stages[-2:]
        if any(p.requires_grad for _, p in stage.named_parameters(extractor))
    ]
    torch.optim.SGD(groups).step()
