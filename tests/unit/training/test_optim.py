import pytest
import torch

from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.training.epoch_curves import run_rate
from sat_vg.backbone_finetuning.training.losses import CrossEntropy
from sat_vg.backbone_finetuning.training.optim import (
    Schedule,
    build_optimizer,
    in_groups_of_today,
    parameter_groups,
    set_learning_rate,
)


def schedule(kind, **changes):
    values = {"learning_rate": 1.0, "warmup_epochs": 2.0, "step_size": 3, "gamma": 0.1, "min_lr": 0.01, **changes}
    return Schedule(kind, **values)


def test_cosine_with_warmup():
    course = schedule("cosine")
    assert course.at(0.5, 10) == pytest.approx(0.25)
    assert course.at(2.0, 10) == pytest.approx(1.0)
    assert course.at(6.0, 10) == pytest.approx((1 + 0.01) / 2)
    assert course.at(10.0, 10) == pytest.approx(0.01)
    rates = [course.at(epoch / 7, 10) for epoch in range(14, 71)]
    assert rates == sorted(rates, reverse=True)


def test_step_and_plateau():
    assert [schedule("step").at(e + 0.5, 12) for e in (2, 3, 6, 11)] == pytest.approx([1.0, 0.1, 0.01, 0.01])
    assert schedule("plateau").at(5.0, 12, plateau_factor=0.1) == pytest.approx(0.1)
    assert schedule("plateau").at(1.0, 12, plateau_factor=0.1) == pytest.approx(0.5)  # the warm-up is not scaled


def test_a_phase_of_one_epoch_is_not_all_warmup():
    assert schedule("cosine").at(0.5, 1) == pytest.approx(1.0)


@pytest.mark.parametrize("backbone", ["resnet18", "vit_b_16"])
def test_groups_cover_every_parameter_once(backbone):
    model = FineTuneModel(backbone, 3, pretrained=False, image_size=32)
    groups = parameter_groups(model, 0.1)
    ids = [id(p) for group in groups for p in group["params"]]
    assert len(ids) == len(set(ids)) == len(list(model.network.parameters()))
    names = {id(p): name for name, p in model.network.named_parameters()}
    spared = {names[id(p)] for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    decayed = {names[id(p)] for group in groups if group["weight_decay"] == 0.1 for p in group["params"]}
    assert all(model.network.get_parameter(name).ndim > 1 for name in decayed)
    assert {name for name in names.values() if name.endswith("bias")} <= spared
    if backbone == "vit_b_16":
        assert {"class_token", "encoder.pos_embedding"} <= spared
        assert "conv_proj.weight" in decayed


def test_the_learning_rate_reaches_every_group_with_its_scale():
    model = FineTuneModel("resnet18", 3, pretrained=False, image_size=32)
    optimizer = build_optimizer(model, "adamw", 0.1, 0.9)
    optimizer.param_groups[0]["lr_scale"] = 0.5
    set_learning_rate(optimizer, 0.2)
    assert [group["lr"] for group in optimizer.param_groups[:2]] == [0.1, 0.2]


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_frozen_parameters_do_not_move_and_keep_their_state(name):
    model = FineTuneModel("resnet18", 3, pretrained=False, image_size=32)
    optimizer = build_optimizer(model, name, 0.1, 0.9)
    set_learning_rate(optimizer, 0.01)

    def step():
        CrossEntropy()(model(torch.randn(4, 3, 32, 32)), torch.eye(3)[torch.tensor([0, 1, 2, 0])]).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    model.train()
    step()
    layer1, layer4 = model.network.layer1[0].conv1.weight, model.network.layer4[0].conv1.weight
    before, state_before = layer1.clone(), dict(optimizer.state[layer4])
    model.set_trainable(["layer3", "layer4"])
    assert optimizer.state[layer4].keys() == state_before.keys()
    moved_before = layer4.clone()
    step()
    assert torch.equal(layer1, before)
    assert not torch.equal(layer4, moved_before)


@pytest.mark.parametrize(("name", "share"), [("adamw", 0.01 * 0.1), ("adam", None)])
def test_decay_is_a_share_of_the_weights_for_adamw_and_a_gradient_for_adam(name, share):
    model = FineTuneModel("resnet18", 3, pretrained=False, image_size=32)
    optimizer = build_optimizer(model, name, 0.1, 0.9)
    set_learning_rate(optimizer, 0.01)
    weights = model.network.fc.weight
    before = weights.detach().clone()
    weights.grad = torch.zeros_like(weights)
    optimizer.step()
    # L2 is all that Adam sees here, and its first step has the length of the rate.
    moved = before * share if share else 0.01 * before.sign()
    torch.testing.assert_close(before - weights.detach(), moved, rtol=1e-2, atol=1e-5)


def test_soft_targets_equal_hard_ones_to_the_bit():
    logits, labels = torch.randn(16, 5), torch.randint(5, (16,))
    hard = torch.nn.functional.cross_entropy(logits, labels, reduction="sum", label_smoothing=0.1)
    soft = CrossEntropy(0.1)(logits, torch.eye(5)[labels])
    assert torch.allclose(soft, hard, rtol=1e-6)


@pytest.mark.parametrize("kind", ["cosine", "step", "plateau"])
@pytest.mark.parametrize("scale", [1.0, 0.3, 1e-3])
def test_no_factor_brings_a_learning_rate_below_the_lowest_after_the_warm_up(kind, scale):
    model = FineTuneModel("resnet18", 3, pretrained=False, image_size=32)
    optimizer = build_optimizer(model, "adamw", 0.1, 0.9, layer_decay=0.5, head_lr_scale=0.1)
    course = schedule(kind, min_lr=0.02)
    for epoch in (0.5, 1.9, 2.1, 5.0, 9.9):
        lowest = course.lowest(epoch, 10)
        assert lowest == (0.0 if epoch < 2 else 0.02)
        rate = max(lowest, scale * course.at(epoch, 10, plateau_factor=1e-4))
        set_learning_rate(optimizer, rate, lowest)
        rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
        assert min(rates.values()) >= lowest
        assert rates["layer4"] == rate == run_rate(optimizer)
        assert rates["layer2"] == max(lowest, 0.25 * rate)
        assert rates["head"] == max(lowest, 0.1 * rate)


def test_layer_decay_and_head_scale_reach_the_learning_rates():
    model = FineTuneModel("resnet18", 3, pretrained=False, image_size=32)
    optimizer = build_optimizer(model, "adamw", 0.1, 0.9, layer_decay=0.5, head_lr_scale=10.0)
    set_learning_rate(optimizer, 0.1)
    rates = {group["name"].removesuffix("/no_decay"): group["lr"] for group in optimizer.param_groups}
    expected = {"stem": 0.00625, "layer1": 0.0125, "layer2": 0.025, "layer3": 0.05, "layer4": 0.1, "head": 1.0}
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("backbone", ["swin_t", "vit_b_16", "resnet18"])
def test_a_state_saved_in_the_groups_of_an_earlier_version_finds_its_parameters(backbone):
    model = FineTuneModel(backbone, 3, pretrained=False, image_size=32)
    named = dict(model.network.named_parameters())
    then = [  # tables of positions and scales decayed
        [
            name
            for name, p in parameters.items()
            if (p.ndim > 1 and not name.endswith(("class_token", "pos_embedding"))) is decays
        ]
        for parameters in (
            *(dict(stage.named_parameters(model.network)) for stage in model.stages),
            {name: named[name] for name in model.head_parameter_names},
        )
        for decays in (True, False)
    ]
    then = [names for names in then if names]
    earlier = torch.optim.AdamW([{"params": [named[name] for name in names]} for names in then], lr=0.1)
    for number, parameter in enumerate(named.values()):
        parameter.grad = torch.full_like(parameter, number)
    earlier.step()
    optimizer = build_optimizer(model, "adamw", 0.1, 0.9)
    optimizer.load_state_dict(in_groups_of_today(earlier.state_dict(), model, optimizer))
    for number, parameter in enumerate(named.values()):
        assert optimizer.state[parameter]["exp_avg"].allclose(torch.tensor(0.1 * number)), number
    assert {group["weight_decay"] for group in optimizer.param_groups} == (
        {0.1, 0.0} if backbone == "swin_t" else {0.01}  # as saved
    )
