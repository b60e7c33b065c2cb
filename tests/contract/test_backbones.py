"""What every backbone must keep, whatever its family; one small member of each family runs through all of it.

By default those run that differ the most from each other. The others, too, are composed and frozen by default, and
saved and loaded but for the largest: in ``test_every_backbone.py``.
"""

import copy
import pickle

import pytest
import torch
from contract.networks import SMALL, slow_but, smallest_size
from torch import nn

from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.models.networks.table import BACKBONES, build_network
from sat_vg.backbone_finetuning.training.losses import CrossEntropy
from sat_vg.backbone_finetuning.training.optim import build_optimizer, set_learning_rate

QUICK = [
    "resnet18", "densenet121", "mobilenet_v3_small", "shufflenet_v2_x0_5", "convnext_tiny", "vit_b_16", "swin_t",
    "squeezenet1_1", "googlenet", "custom_cnn",
]  # fmt: skip


@pytest.fixture(scope="module", params=slow_but(QUICK, SMALL))
def model(request):
    torch.manual_seed(0)
    size = smallest_size(BACKBONES[request.param])
    model = FineTuneModel(request.param, 5, pretrained=False, image_size=size, dropout=0.3)
    for module in model.modules():  # statistics that are not those of a fresh layer, so that mixing them up shows
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def test_the_small_ones_stand_for_all_families():
    assert {BACKBONES[name].family.name for name in SMALL} == {row.family.name for row in BACKBONES.values()}


def images_for(model, count=2):
    side = model.preprocessing.image_size
    return torch.randn(count, 3, side, side)


def test_stages_compose_to_torchvisions_own_forward_bitwise(model):
    images = images_for(model)
    with torch.no_grad():
        assert torch.equal(model(images), model.network(images))


def pads_its_border(model):
    return model.backbone not in ("alexnet", "inception_v3", "squeezenet1_1")


def test_the_extractor_declares_what_it_gives(model):
    with_maps = tuple(stage.name for stage in model.stages if stage.gives_map)
    extractor = model.get_feature_extractor(out_names=with_maps)
    for height, width in ((96, 96), (256, 192), (100, 75)):
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
            assert all(
                abs(n - side / stride) < (2 if pads_its_border(model) else 5)
                for n, side in zip(found.shape[2:], padded, strict=True)
            )
            if (height, width) == (256, 192) and pads_its_border(model):
                assert found.shape[2:] == tuple(side // stride for side in padded)
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


def test_pooled_vector_is_what_the_head_saw(model):
    images = images_for(model)
    extractor = model.get_feature_extractor()
    with torch.no_grad():
        pooled = extractor.forward_pooled(images)
        assert torch.equal(model.forward_head(pooled), model(images))
    assert pooled.shape == (2, extractor.embed_dim)


def test_freezing_moves_nothing_that_is_frozen_and_all_that_is_not(model):
    model = copy.deepcopy(model)
    keep = len(model.stages) // 2
    trained = model.stage_names[keep:]
    model.set_trainable(trained)
    assert model.num_frozen_stages == keep
    optimizer = build_optimizer(model, "adamw", 0.1, 0.9)
    set_learning_rate(optimizer, 1e-2)
    images, targets = images_for(model, 4), torch.eye(5)[torch.tensor([0, 1, 2, 3])]
    frozen_members = tuple(f"{member}." for stage in model.stages[:keep] for member in stage.members)
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    with torch.no_grad():
        prefix_before = model.run_stages(images, stop=keep)
    for _ in range(2):
        model.train()
        model.network.train()  # whoever calls it, and on whatever part
        for module in model.network.modules():
            module.train()
        losses = [weight * CrossEntropy()(logits, targets) for weight, logits in model.training_outputs(images)]
        sum(losses).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    after = model.network.state_dict()
    checked = 0
    for name, value in after.items():
        if f"{name}.".startswith(frozen_members):
            checked += 1
            assert torch.equal(value, before[name]), f"{name} moved"
        elif model.network.state_dict(keep_vars=True)[name].requires_grad:
            assert not torch.equal(value, before[name]), f"{name} did not move"
    assert checked > 0
    model.eval()
    with torch.no_grad():
        assert torch.equal(model.run_stages(images, stop=keep), prefix_before)


def test_train_after_freezing_keeps_the_mode_of_frozen_stages(model):
    model = copy.deepcopy(model)
    model.set_trainable(model.stage_names[-1:])
    model.train()
    assert not any(m.training for stage in model.stages[:-1] for m in stage.modules(model.network))
    assert any(m.training for m in model.stages[-1].modules(model.network))
    model.set_trainable(model.stage_names)
    model.train()
    assert all(m.training for m in model.modules())


def test_save_load_extract_is_exact(model, tmp_path):
    model.save_checkpoint(tmp_path / "m.pt", config={"a": 1}, metrics={"val_accuracy": 0.5})
    loaded = FineTuneModel.load_checkpoint(tmp_path / "m.pt")
    images = images_for(model)
    assert not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))
    assert (loaded.class_names, loaded.preprocessing) == (model.class_names, model.preprocessing)
    extractor = loaded.get_feature_extractor()
    assert extractor.provenance["metrics"] == {"val_accuracy": 0.5}
    with torch.no_grad():
        for mine, theirs in zip(
            extractor(images).values(), model.get_feature_extractor()(images).values(), strict=True
        ):
            assert torch.equal(mine, theirs)
    # The weights lie under torchvision's own names and load there strictly.
    stored = torch.load(tmp_path / "m.pt", weights_only=True)["state_dict"]
    build_network(model.row, 5, model.preprocessing.image_size).load_state_dict(stored, strict=True)


def test_the_extractor_has_torchvisions_names(model):
    own = model.get_feature_extractor().state_dict()
    assert set(own) <= set(model.network.state_dict())
    left_out = set(model.network.state_dict()) - set(own)
    assert left_out
    heads = (model.row.family.classifier, *(head.module for head in model.row.family.auxiliary_heads))
    assert all(name.startswith(heads) for name in left_out)


def test_the_extractor_can_be_copied_and_pickled(model):
    extractor, images = model.get_feature_extractor(), torch.randn(1, 3, 112, 90)
    for other in (copy.deepcopy(extractor), pickle.loads(pickle.dumps(extractor))):
        with torch.no_grad():
            assert torch.equal(list(other(images).values())[-1], list(extractor(images).values())[-1])
        for parameter in other.parameters():
            parameter.data.zero_()
        with torch.no_grad():
            assert not torch.equal(list(other(images).values())[-1], list(extractor(images).values())[-1])


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
