"""Sums of a validation where images have several classes, against scikit-learn; and what "best" may mean."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, log_loss, precision_score, recall_score
from torchmetrics.functional.classification import multilabel_average_precision

from sat_vg.backbone_finetuning.evaluation.metrics import MultiLabelSums, ValidationSums, average_precisions
from sat_vg.backbone_finetuning.evaluation.tasks import TASKS, task_of
from sat_vg.backbone_finetuning.training.training import Stopping
from sat_vg.backbone_finetuning.utils.errors import ConfigError

CPU = torch.device("cpu")


def drawn(count=301, num_classes=6, absent=(4,)):
    """Logits with ties and extremes, and targets; no image has the absent classes, some have none at all."""
    generator = torch.Generator().manual_seed(0)
    targets = (torch.rand(count, num_classes, generator=generator) < 0.3).float()
    targets[:, list(absent)] = 0
    logits = (3 * targets - 1.5 + 2 * torch.randn(count, num_classes, generator=generator)).mul(4).round().div(4)
    logits[0] = torch.tensor([30.0, -30, 0, 20, -20, 25])
    return logits, targets


def summed(logits, targets, sizes):
    task, sums = TASKS["multi_label"], MultiLabelSums(logits.shape[1], CPU)
    for part, rows in zip(logits.split(sizes), targets.split(sizes), strict=True):
        sums.add(part, rows, task.loss(part, rows))
    return sums.result()


def test_they_are_those_of_scikit_learn():
    logits, targets = drawn()
    found = summed(logits, targets, len(logits))
    truth, given, shares = targets.bool().numpy(), (logits >= 0).numpy(), logits.double().sigmoid().numpy()
    present = [place for place in range(6) if place != 4]
    assert found.accuracy == accuracy_score(truth, given)
    assert 0 < found.accuracy < 1
    numbers = found.numbers()
    assert numbers["macro_f1"] == pytest.approx(f1_score(truth[:, present], given[:, present], average="macro"))
    assert numbers["micro_f1"] == pytest.approx(f1_score(truth, given, average="micro"))
    wanted = average_precision_score(truth[:, present], shares[:, present], average="macro")
    assert numbers["val_map"] == pytest.approx(wanted, abs=1e-6)
    assert found.average_precisions[4] is None
    losses = [log_loss(truth[:, place], shares[:, place], labels=[False, True]) for place in range(6)]
    assert found.loss == pytest.approx(np.mean(losses), rel=1e-5)
    rows = found.rows()
    for name, score in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
        assert [row[name] for row in rows] == pytest.approx(score(truth, given, average=None, zero_division=0))
    assert [row["images"] for row in rows] == truth.sum(0).tolist()
    assert found.confusion is None


def test_average_precision_is_torchmetrics_own_for_several_labels():
    logits, targets = drawn(absent=())
    wanted = multilabel_average_precision(logits.double().sigmoid(), targets.long(), 6, average=None, thresholds=None)
    assert average_precisions(logits, targets.bool()) == pytest.approx(wanted.tolist(), abs=1e-7)


def test_uneven_batches_give_the_same():
    logits, targets = drawn()
    whole = summed(logits, targets, len(logits))
    for sizes in (1, 7, [200, 100, 1]):
        found = summed(logits, targets, sizes)
        assert found.average_precisions == whole.average_precisions
        assert torch.equal(found.counts, whole.counts)
        assert found.accuracy == whole.accuracy
        assert found.loss == pytest.approx(whole.loss, rel=1e-6)  # the losses of a batch are added up in float32


def test_images_without_any_class_and_broken_logits():
    logits = torch.tensor([[-1.0, 1.0], [-2.0, -3.0]])
    found = summed(logits, torch.zeros(2, 2), 2)
    assert found.numbers() == {
        "val_loss": pytest.approx(found.loss), "val_accuracy": 0.5, "macro_f1": 0.0, "micro_f1": 0.0, "val_map": 0.0
    }  # fmt: skip
    broken = summed(torch.full((3, 2), math.nan), torch.ones(3, 2), 2)
    assert math.isnan(broken.loss)  # which the loop reports


def test_one_class_an_image_has_no_average_precision():
    sums = ValidationSums(3, CPU)
    logits, targets = torch.randn(20, 3), torch.eye(3)[torch.arange(20) % 2]
    sums.add(logits, targets, TASKS["single_label"].loss(logits, targets))
    found = sums.result()
    assert list(found.numbers()) == ["val_loss", "val_accuracy", "macro_f1"]
    truth, given = targets.argmax(1).numpy(), logits.argmax(1).numpy()
    wanted = f1_score(truth, given, average=None, labels=range(3), zero_division=0)
    assert [row["f1"] for row in found.rows()] == pytest.approx(wanted)
    assert found.f1_by_class[2] is None
    assert found.macro_f1 == pytest.approx(wanted[:2].mean())
    assert "average_precision" not in found.rows()[0]
    assert found.value_of("val_macro_f1") == found.macro_f1
    assert found.value_of("val_loss") == found.loss


def test_what_best_means():
    single, several = task_of(False), task_of(True)
    assert (single.metric(None), several.metric(None)) == ("val_accuracy", "val_map")
    for metric in ("val_accuracy", "val_loss", "val_macro_f1"):
        assert single.metric(metric) == several.metric(metric) == metric
        assert Stopping(metric, 1, 0.0).higher_is_better == (metric != "val_loss")
    assert several.metric("val_map") == "val_map"
    with pytest.raises(ConfigError, match="early_stopping_metric = 'val_map': is for images that can have several"):
        single.metric("val_map")


def test_a_task_knows_what_is_given():
    logits = torch.tensor([[-1.0, -0.5, -2.0], [1.0, 3.0, -1.0]])
    assert TASKS["single_label"].given(logits).int().tolist() == [[0, 1, 0], [0, 1, 0]]
    assert TASKS["multi_label"].given(logits).int().tolist() == [[0, 0, 0], [1, 1, 0]]
    assert torch.allclose(TASKS["multi_label"].probabilities(logits, 2.0), (logits / 2).sigmoid())
    assert torch.allclose(TASKS["single_label"].probabilities(logits).sum(1), torch.ones(2))
    targets = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    task = TASKS["multi_label"]
    assert task.losses(logits, targets).sum() == pytest.approx(float(task.loss(logits, targets)))
    assert task.labels(targets).tolist() == targets.bool().tolist()
