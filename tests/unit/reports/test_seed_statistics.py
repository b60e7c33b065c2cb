"""Means over seeds: against published tables and a computation by hand."""

import pytest

from sat_vg.backbone_finetuning.reports.seed_statistics import deviation, difference, student_quantile


@pytest.mark.parametrize(
    ("freedom", "expected"), [(1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (10, 2.228), (30, 2.042), (1e4, 1.960)]
)
def test_quantiles_are_those_of_the_tables(freedom, expected):
    assert student_quantile(freedom) == pytest.approx(expected, abs=2e-3)


def test_welch_by_hand():
    # Variances 1 and 4, three values each: standard error sqrt(5/3), degrees of freedom (5/3)^2 / (1/18 + 16/18).
    found = difference([4.0, 5.0, 6.0], [1.0, 3.0, 5.0])
    reach = student_quantile((5 / 3) ** 2 / (1 / 18 + 16 / 18)) * (5 / 3) ** 0.5
    assert found.value == pytest.approx(2.0)
    assert (found.low, found.high) == pytest.approx((2.0 - reach, 2.0 + reach))
    assert found.is_noise


def test_one_seed_says_nothing_of_noise():
    assert difference([0.9], [0.5, 0.6]).is_noise is None
    assert deviation([0.9]) is None


def test_equal_values_do_not_claim_certainty():
    exact = difference([0.90, 0.90], [0.91, 0.91])
    assert exact.is_noise is False
    assert exact.low == exact.high
    coarse = difference([0.90, 0.90], [0.91, 0.91], grain=0.01)
    assert coarse.is_noise
    assert difference([0.90, 0.90], [0.99, 0.99], grain=0.01).is_noise is False
