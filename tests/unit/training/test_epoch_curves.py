"""What an epoch's end adds to TensorBoard, against sums done by hand and steps done by torch."""

import pytest
import torch
from sklearn.metrics import f1_score

from sat_vg.backbone_finetuning.evaluation.metrics import ValidationSums
from sat_vg.backbone_finetuning.models.finetune_model import FineTuneModel
from sat_vg.backbone_finetuning.training.epoch_curves import (
    chart_names,
    peak_memory,
    run_rate,
    stage_rates,
    update_ratios,
)
from sat_vg.backbone_finetuning.training.optim import build_optimizer, set_learning_rate


def tiny_model() -> FineTuneModel:
    return FineTuneModel("resnet18", 3, pretrained=False, image_size=32, seed=1)


def take_steps(model, optimizer, count, rate=1e-2):
    """Steps on noise; the norms of what the last one did to each weight matrix, and of the weights after it."""
    for step in range(count):
        generator = torch.Generator().manual_seed(step)
        model.train()
        outputs = model(torch.randn(4, 3, 32, 32, generator=generator))
        outputs.square().mean().backward()
        before = {name: p.detach().clone() for name, p in model.network.named_parameters()}
        set_learning_rate(optimizer, rate)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {
        name: (float((p - before[name]).detach().norm()), float(p.detach().norm()))
        for name, p in model.network.named_parameters()
    }


def test_f1_is_that_of_scikit_learn_and_leaves_out_absent_classes():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (200,), generator=generator)
    predicted = torch.where(torch.rand(200, generator=generator) < 0.6, labels, (labels + 1) % 5)
    sums = ValidationSums(5, torch.device("cpu"))
    sums.add(torch.eye(5)[predicted], torch.eye(5)[labels], torch.zeros(()))
    validation, wanted = sums.result(), f1_score(labels, predicted, labels=range(4), average=None)
    assert validation.f1_by_class == [*(pytest.approx(score, rel=1e-12) for score in wanted), None]
    assert validation.macro_f1 == pytest.approx(wanted.mean(), rel=1e-12)


@pytest.mark.parametrize(
    ("name", "rate", "tolerance"), [("adamw", 1e-4, 5e-3), ("adam", 1e-4, 5e-3), ("sgd", 1e-6, 0.35)]
)
def test_the_update_ratio_is_that_of_the_step_that_was_taken(name, rate, tolerance):
    model = tiny_model()
    decay = 0.05 if name == "sgd" else 5.0  # so much that it is a part of the update
    optimizer = build_optimizer(model, name, decay, 0.9, layer_decay=0.5, head_lr_scale=3.0)
    assert update_ratios(optimizer) == {}
    norms = take_steps(model, optimizer, 6, rate)
    ratios = update_ratios(optimizer)
    assert list(ratios) == ["stem", "layer1", "layer2", "layer3", "layer4", "head"]
    for stage, ratio in ratios.items():
        prefix = {"stem": "conv1", "head": "fc"}.get(stage, stage)
        pairs = [norms[n] for n, p in model.network.named_parameters() if n.startswith(prefix) and p.ndim > 1]
        assert pairs
        update, weights = (sum(part**2 for part in column) ** 0.5 for column in zip(*pairs, strict=True))
        assert ratio == pytest.approx(update / weights, rel=tolerance), stage


def test_only_trained_stages_have_rates_and_ratios_and_a_restored_optimizer_gives_the_same():
    model = tiny_model()
    optimizer = build_optimizer(model, "adamw", 0.05, 0.9, layer_decay=0.5, head_lr_scale=3.0)
    take_steps(model, optimizer, 2)
    model.set_trainable(("layer4",))
    take_steps(model, optimizer, 2)
    assert stage_rates(optimizer) == pytest.approx({"layer4": 1e-2, "head": 3e-2})
    assert run_rate(optimizer) == pytest.approx(1e-2)
    ratios = update_ratios(optimizer)
    assert list(ratios) == ["layer4", "head"]
    again = build_optimizer(model, "adamw", 0.05, 0.9, layer_decay=0.5, head_lr_scale=3.0)
    again.load_state_dict(optimizer.state_dict())
    assert update_ratios(again) == ratios


def test_without_factors_there_are_no_rates_by_stage_and_without_momentum_no_ratios():
    model = tiny_model()
    optimizer = build_optimizer(model, "sgd", 0.0, 0.0)
    take_steps(model, optimizer, 1)
    assert stage_rates(optimizer) == {}
    assert update_ratios(optimizer) == {}


def test_the_memory_is_that_of_this_process():
    before = peak_memory(torch.device("cpu"))["peak_resident_gib"]
    kept = torch.ones(2**27)  # half a GiB
    after = peak_memory(torch.device("cpu"))["peak_resident_gib"]
    assert 0.05 < before <= after < 64
    assert after > 0.5
    del kept
    assert peak_memory(torch.device("cpu"))["peak_resident_gib"] > 0.99 * after  # Linux counts in batches


def test_names_of_charts_stay_apart_in_one_line_and_in_one_group():
    names = ["a/b", "a_b", "<script>", "two\nlines", "\udcff", "x" * 200, "x" * 300]
    shown = chart_names(names)
    assert shown[:5] == ["a_b (0)", "a_b (1)", "<script>", "two\\nlines", "\\udcff"]
    assert len(set(shown)) == len(names)
    assert max(map(len, shown)) < 70
    for name in shown:
        name.encode()  # what a protocol buffer takes
