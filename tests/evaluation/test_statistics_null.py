"""Simulated false wins and coverage, within three binomial standard errors; the benchmark runs 10,000 trials."""

import math

import numpy as np
import pytest
from benchmarks.statistics_null import (
    coverage_of_differences,
    coverage_of_means,
    false_wins,
    family_wins,
)


def slack(share, trials):
    return 3 * math.sqrt(share * (1 - share) / trials)


@pytest.mark.parametrize(
    ("kind", "n", "p", "trials"),
    [("binary", 50, 0.5, 1500), ("binary", 1000, 0.1, 1500), ("sampled", 50, 0.5, 600), ("clustered", 100, 0.5, 600)],
)
def test_equal_systems_are_called_different_in_five_percent_at_most(kind, n, p, trials):
    found = false_wins(kind, n, p, trials)
    assert 0.004 < found <= 0.05 + slack(0.05, trials)


def test_twelve_comparisons_together_stay_at_five_percent():
    assert 0 < family_wins(200, 1000) <= 0.05 + slack(0.05, 1000)


@pytest.mark.parametrize("kind", ["binary", "sampled", "clustered"])
def test_intervals_of_means_cover(kind):
    n = 200
    found = [coverage_of_means(kind, n, p, 500) for p in (0.1, 0.3, 0.7, 0.9)]
    assert 0.94 - slack(0.95, 2000) <= np.mean(found) <= 0.96 + slack(0.95, 2000)


@pytest.mark.parametrize("apart", [0.0, 0.05])
def test_intervals_of_paired_differences_cover(apart):
    found = [coverage_of_differences("binary", 200, p, apart, 500) for p in (0.1, 0.5, 0.9)]
    assert 0.94 - slack(0.95, 1500) <= np.mean(found) <= 0.96 + slack(0.95, 1500)
