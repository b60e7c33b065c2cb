import pytest
import torch
from sklearn.metrics import log_loss, top_k_accuracy_score
from torchmetrics.functional.classification import binary_calibration_error

from sat_vg.backbone_finetuning.evaluation.metrics import MultiLabelSums, ValidationSums
from sat_vg.backbone_finetuning.evaluation.mistakes import most_confident_mistakes
from sat_vg.backbone_finetuning.evaluation.predictions import Predictions
from sat_vg.backbone_finetuning.evaluation.tasks import TASKS


def predictions_of(logits, labels):
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    sums = ValidationSums(logits.shape[1], torch.device("cpu"))
    sums.add(logits, torch.nn.functional.one_hot(labels, logits.shape[1]).float(), losses.sum())
    return Predictions(logits, labels, losses, sums.result())


def drawn(classes):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(200, classes, generator=generator), torch.randint(classes, (200,), generator=generator)


def test_numbers_and_what_a_temperature_changes_in_them():
    logits, labels = drawn(9)
    names = [f"c{i}" for i in range(9)]
    found = TASKS["single_label"].assess(predictions_of(logits, labels), names, 1.0)
    assert found["top_5_accuracy"] == top_k_accuracy_score(labels, logits.numpy(), k=5, labels=range(9))
    assert 0.4 < found["top_5_accuracy"] < 0.7
    expected = log_loss(labels, logits.double().softmax(1), labels=range(9))
    assert found["loss"] == pytest.approx(expected, rel=1e-6)
    assert found["calibration"]["nll"] == pytest.approx(expected, rel=1e-9)
    scaled = TASKS["single_label"].assess(predictions_of(logits, labels), names, 3.0)
    changed = {name for name in found if found[name] != scaled[name]}
    assert changed == {"ece", "intervals", "calibration"}
    assert scaled["intervals"]["accuracy"] == found["intervals"]["accuracy"]
    assert scaled["calibration"]["uncalibrated_ece"] == found["ece"]
    assert "top_5_accuracy" not in TASKS["single_label"].assess(predictions_of(*drawn(5)), names[:5], 1.0)


def test_a_temperature_changes_the_calibration_of_all_pairs_alone():
    generator = torch.Generator().manual_seed(0)
    logits, has_class = torch.randn(80, 5, generator=generator), torch.rand(80, 5, generator=generator) < 0.3
    losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, has_class.float(), reduction="none").mean(1)
    sums = MultiLabelSums(5, torch.device("cpu"))
    sums.add(logits, has_class.float(), losses.sum())
    predictions = Predictions(logits, has_class, losses, sums.result(), "multi_label")
    found, scaled = (
        TASKS["multi_label"].assess(predictions, list("abcde"), temperature) for temperature in (1.0, 3.0)
    )
    assert {name for name in found if found[name] != scaled[name]} == {"ece", "calibration"}
    truth = has_class.flatten().long()
    for content, temperature in ((found, 1.0), (scaled, 3.0)):
        shares = (logits.double() / temperature).sigmoid().flatten()
        assert content["ece"] == pytest.approx(float(binary_calibration_error(shares, truth, n_bins=15)), abs=1e-6)
        assert content["calibration"]["nll"] == pytest.approx(log_loss(truth, shares))
        assert sum(row["images"] for row in content["calibration"]["bins"]) == 400
    assert scaled["calibration"]["uncalibrated_ece"] == found["ece"]
    assert scaled["calibration"]["uncalibrated_nll"] == found["calibration"]["nll"] == pytest.approx(found["loss"])


def test_of_equal_logits_the_first_class_wins_everywhere():
    logits, labels = torch.zeros(30, 21), torch.arange(30) % 21
    predictions = predictions_of(logits, labels)
    assert predictions.ranked(5).tolist() == [[0, 1, 2, 3, 4]] * 30
    assert predictions.predicted.tolist() == [0] * 30
    found = TASKS["single_label"].assess(predictions, [f"c{i}" for i in range(21)], 1.0)
    assert [row[0] for row in found["confusion"]] == [2] * 9 + [1] * 12
    assert found["top_5_accuracy"] == 10 / 30


def test_the_most_confident_mistakes():
    confidences = torch.tensor([0.9, 0.5, 0.99, 0.9, 0.7])
    hits = torch.tensor([False, False, True, False, False])
    assert most_confident_mistakes(confidences, hits, 3) == [0, 3, 4]
    assert most_confident_mistakes(confidences, torch.ones(5, dtype=torch.bool), 3) == []
