"""The losses against their formulas, written down once more in float64."""

import inspect
from dataclasses import fields, is_dataclass

import pytest
import torch
from torch.nn import functional

from sat_vg.backbone_finetuning.configs.finetune_config import FinetuneConfig
from sat_vg.backbone_finetuning.data.sources.splits import Split
from sat_vg.backbone_finetuning.training import losses
from sat_vg.backbone_finetuning.training.assembly import training_loss
from sat_vg.backbone_finetuning.training.losses import LOSSES, BinaryCrossEntropy, CrossEntropy, weights_of_classes

CLASSES = 5
WEIGHTS = torch.tensor([0.2, 3.0, 1.0, 0.7, 1.4])


def logits_and_labels(count=16):
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.randn(count, CLASSES, generator=generator), torch.arange(count) % CLASSES


def soft_targets(count=16):
    return torch.rand(count, CLASSES, generator=torch.Generator().manual_seed(1)).softmax(1)


def focal(logits, targets, smoothing, weights, gamma):
    """Σ over images and classes of w · q · (1 − p)^γ · (−log p), q smoothed (Lin et al., 2017, equation 4)."""
    smoothed = (1 - smoothing) * targets.double() + smoothing / CLASSES
    shares = logits.double().exp() / logits.double().exp().sum(1, keepdim=True)
    weights = torch.ones(CLASSES) if weights is None else weights
    return (weights.double() * smoothed * (1 - shares) ** gamma * -shares.log()).sum()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_cross_entropy_and_focal_loss_follow_the_formula_with_their_gradients(gamma, smoothing, weights):
    logits, labels = logits_and_labels()
    for targets in (torch.eye(CLASSES)[labels], soft_targets()):
        mine, theirs = logits.clone().requires_grad_(), logits.double().requires_grad_()
        found = CrossEntropy(smoothing, weights, gamma)(mine, targets)
        expected = focal(theirs, targets, smoothing, weights, gamma)
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(expected.item(), rel=2e-6)
        found.backward()
        expected.backward()
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_hard_labels_as_torch_takes_them(smoothing, weights):
    logits, labels = logits_and_labels()
    found = CrossEntropy(smoothing, weights)(logits, torch.eye(CLASSES)[labels])
    expected = functional.cross_entropy(logits, labels, weights, reduction="sum", label_smoothing=smoothing)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_focal_loss_of_a_certain_image_has_a_gradient_that_is_a_number():
    for gamma in (0.5, 2.0):
        for loss in (CrossEntropy(focal_gamma=gamma), BinaryCrossEntropy(focal_gamma=gamma)):
            logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
            value = loss(logits, torch.eye(2))
            value.backward()
            assert value.item() == pytest.approx(0, abs=1e-3)
            assert logits.grad.isfinite().all()


def test_half_precision_logits_are_taken_up_to_float32():
    logits, labels = logits_and_labels()
    targets = torch.eye(CLASSES)[labels]
    for loss in (CrossEntropy(0.1, WEIGHTS, 2.0), BinaryCrossEntropy(0.1, WEIGHTS, 2.0)):
        found = loss(logits.bfloat16(), targets)
        assert found.dtype == torch.float32
        assert torch.equal(found, loss(logits.bfloat16().float(), targets))


def binary(logits, targets, smoothing, weights, gamma):
    """Mean over the classes of (miss)^γ · (−w · q · log p − (1 − q) · log(1 − p)), summed over the images."""
    shares, targets = 1 / (1 + (-logits.double()).exp()), targets.double() * (1 - smoothing) + smoothing / 2
    weights = torch.ones(CLASSES) if weights is None else weights
    losses = -(weights.double() * targets * shares.log() + (1 - targets) * (1 - shares).log())
    missed = targets * (1 - shares) + (1 - targets) * shares
    return (missed**gamma * losses).mean(1).sum()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_binary_cross_entropy_follows_the_formula_with_its_gradient(gamma, smoothing, weights):
    logits, _ = logits_and_labels()
    targets = (soft_targets() > 0.2).float()
    targets[0], targets[1] = 0, 1  # none and all of the classes
    mine, theirs = logits.clone().requires_grad_(), logits.double().requires_grad_()
    found = BinaryCrossEntropy(smoothing, weights, gamma)(mine, targets)
    expected = binary(theirs, targets, smoothing, weights, gamma)
    assert found.item() == pytest.approx(expected.item(), rel=2e-6)
    found.backward()
    expected.backward()
    torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-4, atol=1e-6)
    if not gamma and not smoothing:
        whole = functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights) * len(logits)
        torch.testing.assert_close(found.detach(), whole, rtol=1e-5, atol=0)


COUNTS = (1000, 10, 90)


@pytest.mark.parametrize("kind", ["balanced", "effective"])
def test_the_mean_weight_of_the_training_images_is_1(kind):
    for counts in (COUNTS, (5, 5, 5), (3, 1, 0)):  # a class may have no training images
        weights = weights_of_classes(kind, counts, sum(counts), is_multi_label=False).double()
        assert weights.isfinite().all()
        total = (weights * torch.tensor(counts)).sum().item()
        assert total / sum(counts) == pytest.approx(1, abs=1e-6)
    even = weights_of_classes(kind, (7, 7), 14, is_multi_label=False)
    torch.testing.assert_close(even, torch.ones(2))


def test_balanced_goes_by_the_inverse_count():
    weights = weights_of_classes("balanced", COUNTS, 1100, is_multi_label=False)
    torch.testing.assert_close(weights, torch.tensor([1100 / (3 * count) for count in COUNTS]))


def test_effective_numbers_are_those_of_the_paper():
    """Cui et al., 2019, equation 2: E = (1 − β^n) / (1 − β), and a class's weight is 1 / E."""
    beta = 0.999
    weights = weights_of_classes("effective", COUNTS, 1100, is_multi_label=False)
    expected = torch.tensor([(1 - beta) / (1 - beta**count) for count in COUNTS], dtype=torch.float64)
    torch.testing.assert_close(weights[0] / weights, (expected[0] / expected).float())
    balanced = weights_of_classes("balanced", COUNTS, 1100, is_multi_label=False)
    assert weights[1] / weights[0] < balanced[1] / balanced[0]  # milder
    assert weights.dtype == torch.float32


def test_of_several_classes_an_image_those_with_are_weighed_against_those_without():
    weights = weights_of_classes("balanced", (50, 10, 100), 100, is_multi_label=True)
    torch.testing.assert_close(weights, torch.tensor([1.0, 9.0, 0.01]))
    milder = weights_of_classes("effective", (50, 10, 100), 100, is_multi_label=True)
    assert milder[0] == 1
    assert 1 < milder[1] < 9


def test_none_is_no_weights():
    assert weights_of_classes("none", COUNTS, 1100, is_multi_label=False) is None


def test_every_loss_is_in_the_table_and_gets_every_setting_of_its_own():
    found = [one for _, one in inspect.getmembers(losses, inspect.isclass) if one.__module__ == losses.__name__]
    assert {one for one in found if is_dataclass(one)} == set(LOSSES.values()), "add it to LOSSES in losses.py"
    names = {task: [entry.name for entry in fields(loss)] for task, loss in LOSSES.items()}
    assert names["single_label"] == names["multi_label"], "a setting would have no effect on images of the other task"
    several = Split("train", ("a.png", "b.png", "c.png"), (0, 1, 1), ("x", "y"), label_sets=((0,), (1,)))
    single = Split("train", ("a.png", "b.png", "c.png"), (0, 1, 1), ("x", "y"))
    changed = {"label_smoothing": 0.25, "focal_gamma": 1.5, "class_weights": "balanced"}
    for split, kind in ((single, CrossEntropy), (several, BinaryCrossEntropy)):
        loss = training_loss(FinetuneConfig(**changed), split, torch.device("cpu"))
        assert type(loss) is kind
        for entry in fields(kind):  # a new one needs a value here that is not its default
            default, value = entry.default, getattr(loss, entry.name)
            is_other = value is not default and not (isinstance(value, float) and value == default)
            assert is_other, f"{entry.name}: give it a value in `changed` above"
        assert (loss.label_smoothing, loss.focal_gamma) == (0.25, 1.5)
        assert loss.class_weights.shape == (2,)
