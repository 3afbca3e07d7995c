"""Power of McNemar's exact test against simulation, and what follows from it."""

import math

import numpy as np
import pytest

from loopline.evaluation.power import (
    detectable_by_error,
    detectable_difference,
    items_needed,
    mcnemar_power,
)
from loopline.evaluation.statistics import mcnemar


@pytest.mark.parametrize(
    ("n", "discordance", "difference"), [(50, 0.3, 0.2), (200, 0.2, 0.08), (1000, 0.1, 0.03), (30, 0.4, 0.4)]
)
def test_power_is_the_share_of_simulated_tests(n, discordance, difference):
    rng = np.random.default_rng(n)
    shares = [(discordance + difference) / 2, (discordance - difference) / 2, 1 - discordance]
    found = [mcnemar(int(w), int(v)) < 0.05 and w > v for w, v, _ in rng.multinomial(n, shares, 3000)]
    assert mcnemar_power(difference, discordance, n) == pytest.approx(np.mean(found), abs=0.03)


def test_no_difference_is_found_at_half_the_level_at_most():
    assert 0 < mcnemar_power(0.0, 0.3, 100) <= 0.025
    assert mcnemar_power(1.0, 1.0, 20) == 1 and mcnemar_power(1.0, 1.0, 5) == 0 and mcnemar_power(0.0, 0.0, 9) == 0


def test_the_detectable_difference_is_found_in_four_of_five():
    found = detectable_difference(30, 20, 200)
    # The smallest, with one discordant item more than were seen among two more items.
    assert mcnemar_power(found, 51 / 202, 200) >= 0.8 > mcnemar_power(found - 1e-5, 51 / 202, 200)
    assert detectable_difference(30, 20, 200, alpha=0.01) > found > detectable_difference(150, 100, 1000)
    # Five items never reach p < 0.05, whatever is seen.
    assert detectable_difference(2, 0, 5) is None


def test_many_items_use_the_normal_approximation():
    assert detectable_difference(480, 320, 4001) == pytest.approx(detectable_difference(480, 320, 4000), rel=0.02)


def test_from_a_standard_error():
    # Known rule (z of 0.975 plus z of 0.8, times the error): sd 0.5 on 200 items is 9.9 points.
    assert detectable_by_error(0.5 / math.sqrt(200)) == pytest.approx(0.099, abs=5e-4)
    assert detectable_by_error(0.0) is None and detectable_by_error(math.inf) is None


def test_items_needed():
    assert items_needed(-0.05, 0.1, 100) == 400 and items_needed(0.1, 0.1, 100) == 100
