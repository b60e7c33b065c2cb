"""Means over seeds, and whether two of them differ by more than chance."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_CONFIDENCE = 0.95
_CELLS = 50_000


@dataclass(frozen=True)
class Difference:
    """The difference of two means with its interval."""

    value: float  # first minus second
    # lower end of the 95 % interval; None where a side has one seed only, so that noise is not known
    low: float | None
    high: float | None  # upper end

    @property
    def is_noise(self) -> bool | None:
        """Whether it may be chance: the interval holds 0. None where that is not known."""
        return None if self.low is None or self.high is None else self.low <= 0 <= self.high


def deviation(values: Sequence[float]) -> float | None:
    """The standard deviation of a sample; None of a single value."""
    return statistics.stdev(values) if len(values) > 1 else None


def difference(first: Sequence[float], second: Sequence[float], grain: float = 0.0) -> Difference:
    """The difference of two means with its 95 % interval (Welch, 1947), which takes no equal variances for granted.

    The values, one for each seed, are multiples of ``grain``, so that none can spread less than rounding does: with
    few seeds two equal values say little.
    """
    value = statistics.fmean(first) - statistics.fmean(second)
    if len(first) < 2 or len(second) < 2:
        return Difference(value, None, None)
    floor = grain**2 / 12  # variance of rounding to multiples of the grain
    shares = [max(statistics.variance(values), floor) / len(values) for values in (first, second)]
    variance = sum(shares)
    if variance == 0:
        return Difference(value, value, value)
    freedom = variance**2 / sum(
        share**2 / (len(values) - 1) for share, values in zip(shares, (first, second), strict=True)
    )
    reach = student_quantile(freedom) * variance**0.5
    return Difference(value, value - reach, value + reach)


@lru_cache(maxsize=256)
def student_quantile(freedom: float) -> float:
    """What a Student-distributed number of 1 degree of freedom or more exceeds in size with a probability of 5 %.

    With ``t = sqrt(freedom) tan(a)`` its density is proportional to ``cos(a) ** (freedom - 1)``, which is integrated.
    """
    width = np.pi / 2 / _CELLS
    density = np.cos(width * (np.arange(_CELLS) + 0.5)) ** (freedom - 1)
    shares = np.cumsum(density) / density.sum()
    angle = np.interp(_CONFIDENCE, shares, width * np.arange(1, _CELLS + 1))
    return float(np.sqrt(freedom) * np.tan(angle))
