import math

import pytest
import torch
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from sat_vg.backbone_finetuning.evaluation.calibration import (
    confidence_bins,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability,
)
from sat_vg.backbone_finetuning.utils.errors import ConfigError


def sampled(count=4000, classes=7, temperature=1.0, seed=0):
    """Logits, and labels drawn from what they say once they are divided by ``temperature``."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(count, classes, generator=generator)
    labels = torch.multinomial((logits.double() / temperature).softmax(1), 1, generator=generator)[:, 0]
    return logits, labels


def test_bins_are_closed_at_their_upper_end():
    assert confidence_bins(torch.tensor([0, 0.2, 0.2001, 0.5, 0.99, 1], dtype=torch.float64), 5).tolist() == [
        0,
        0,
        1,
        2,
        4,
        4,
    ]


def test_reliability_by_hand():
    confidences = torch.tensor([0.55, 0.6, 0.95, 1.0, 1.0], dtype=torch.float64)
    hits = torch.tensor([True, False, True, True, False])
    bins = reliability(confidences, hits, 10)
    assert [row["images"] for row in bins] == [0, 0, 0, 0, 0, 2, 0, 0, 0, 3]
    assert bins[5]["confidence"] == pytest.approx(0.575)
    assert bins[5]["accuracy"] == 0.5
    assert (bins[9]["low"], bins[9]["high"]) == (0.9, 1.0)
    assert expected_calibration_error(bins) == pytest.approx((2 * 0.075 + 3 * (2.95 / 3 - 2 / 3)) / 5)


def test_the_error_is_that_of_torchmetrics_but_where_a_confidence_is_one():
    logits, labels = sampled(temperature=2.0)
    probabilities = logits.double().softmax(1)
    confidences, predicted = probabilities.max(1)
    assert confidences.max() < 1
    ours = expected_calibration_error(reliability(confidences, predicted == labels))
    assert ours > 0.1
    assert ours == pytest.approx(float(multiclass_calibration_error(probabilities, labels, 7, n_bins=15)), abs=1e-6)
    # Two that are sure and wrong beside two that are nearly so and right: one bin, in which they cancel in part.
    certain, is_right = torch.tensor([1.0, 1.0, 0.96, 0.96]), torch.tensor([False, False, True, True])
    assert expected_calibration_error(reliability(certain, is_right)) == pytest.approx(0.48)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_temperature_that_the_labels_were_drawn_with_is_found(temperature):
    logits, labels = sampled(20_000, temperature=temperature)
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(temperature, rel=0.04)
    best = negative_log_likelihood(logits, labels, found)
    assert best < negative_log_likelihood(logits, labels, 0.99 * found)
    assert best < negative_log_likelihood(logits, labels, 1.01 * found)
    assert fit_temperature(30 * logits, labels) == pytest.approx(30 * found, rel=1e-4)
    slope = (negative_log_likelihood(logits, labels, found * 1.001) - best) / 0.001
    assert abs(slope) < 1e-2 * best


def test_calibration_lowers_the_error():
    logits, labels = sampled(20_000, temperature=2.5)
    errors = []
    for temperature in (1.0, fit_temperature(logits, labels)):
        confidences, predicted = (logits.double() / temperature).softmax(1).max(1)
        errors.append(expected_calibration_error(reliability(confidences, predicted == labels)))
    assert errors[0] > 0.1
    assert errors[1] < 0.02


def test_without_an_optimum_nothing_is_fitted():
    logits, _ = sampled(50)
    with pytest.raises(ConfigError, match="all 50 predictions are right"):
        fit_temperature(logits, logits.argmax(1))
    with pytest.raises(ConfigError, match="no better than chance"):
        fit_temperature(logits, logits.argmin(1))
    assert math.isfinite(
        fit_temperature(logits, logits.argmax(1).roll(1).where(torch.arange(50) < 5, logits.argmax(1)))
    )


def sampled_sets(count=4000, classes=7, temperature=1.0, seed=0):
    """Logits, most of them below 0, and which classes the images have, drawn from what the logits say."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(count, classes, generator=generator) - 1
    shares = (logits.double() / temperature).sigmoid()
    return logits, torch.rand(count, classes, generator=generator, dtype=torch.float64) < shares


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_one_temperature_for_all_classes_is_found(temperature):
    logits, has_class = sampled_sets(5000, temperature=temperature)
    found = fit_temperature(logits, has_class)
    assert found == pytest.approx(temperature, rel=0.04)
    best = negative_log_likelihood(logits, has_class, found)
    assert best < negative_log_likelihood(logits, has_class, 0.99 * found)
    assert best < negative_log_likelihood(logits, has_class, 1.01 * found)
    assert torch.equal(logits / found >= 0, logits >= 0)
    errors = []
    for tried in (1.0, found):
        shares = (logits.double() / tried).sigmoid().flatten()
        errors.append(expected_calibration_error(reliability(shares, has_class.flatten())))
        theirs = binary_calibration_error(shares, has_class.flatten().long(), n_bins=15)
        assert errors[-1] == pytest.approx(float(theirs), abs=1e-6)
    assert errors[1] < 0.01
    assert (errors[0] > 0.05) == (temperature != 1)


def test_without_an_optimum_for_all_classes_nothing_is_fitted():
    logits, _ = sampled_sets(50)
    with pytest.raises(ConfigError, match="all classes of all 50 images are right"):
        fit_temperature(logits, logits >= 0)
    with pytest.raises(ConfigError, match="no better than chance"):
        fit_temperature(logits, logits < 0)
    nearly = (logits >= 0).clone()
    nearly[0, 0] = ~nearly[0, 0]
    assert 0 < fit_temperature(logits, nearly) < 1
