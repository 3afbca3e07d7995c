"""Gates say what they can tell, and an equal candidate passes as often as they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopline.base.errors import UserError
from loopline.evaluation.statistics import paired_comparison
from loopline.release.config import Power
from loopline.release.power import chance_equal_passes, effective_margin, equal_passes


def outcomes(rng: np.random.Generator, n: int, discordant: float) -> np.ndarray:
    """Differences of two equal systems that disagree on a share of the tasks."""
    return (rng.random(n) < discordant) * (rng.integers(0, 2, n) * 2 - 1)


def test_the_margin_is_kept_where_the_tasks_support_it_and_widened_where_not():
    rng = np.random.default_rng(0)
    many = effective_margin(outcomes(rng, 4000, 0.2), 0.06, 1, Power(), "math")
    assert many.used == many.asked == 0.06 and not many.widened and many.tasks_needed < 4000
    few = effective_margin(outcomes(rng, 60, 0.2), 0.06, 1, Power(), "math")
    assert few.widened and few.used == pytest.approx(few.needed, abs=1e-6) and few.tasks_needed > 60
    with pytest.raises(UserError, match="math: 60 tasks do not support a margin of 0.06.*evaluate on about"):
        effective_margin(outcomes(rng, 60, 0.2), 0.06, 1, Power(underpowered="refuse"), "math")


@settings(deadline=None, max_examples=20)
@given(st.integers(30, 400), st.floats(0.05, 0.6), st.integers(1, 8), st.integers(0, 1000))
def test_an_equal_candidate_passes_all_comparisons_as_often_as_promised(n, discordant, comparisons, seed):
    rng = np.random.default_rng(seed)
    parts = []
    for number in range(comparisons):
        steps = outcomes(rng, n, discordant)
        parts.append((steps, effective_margin(steps, 1e-6, comparisons, Power(), str(number)).used))
    # Promised is 0.9; the rest is the noise of 2000 trials and of the normal approximation.
    assert chance_equal_passes(parts, 2000, seed) > 0.86


def test_the_simulation_agrees_with_real_equal_candidates():
    rng = np.random.default_rng(1)
    margin, passed, promised = 0.07, 0, []
    for trial in range(120):
        steps = outcomes(rng, 300, 0.3).astype(float)
        left = list(np.maximum(steps, 0))
        passed += paired_comparison(left, list(np.maximum(-steps, 0)), seed=trial).low > -margin
        promised.append(equal_passes(steps, margin, 400, trial).mean())
    assert passed / 120 == pytest.approx(float(np.mean(promised)), abs=0.1)


def test_a_loss_of_the_detectable_size_is_blocked_four_times_in_five():
    rng = np.random.default_rng(2)
    steps = outcomes(rng, 400, 0.25)
    found = effective_margin(steps, 0.06, 1, Power(), "math")
    error = np.sqrt(0.25 / 400)
    lows = rng.normal(-found.detectable, error, 20_000) - 1.96 * error
    assert float(np.mean(lows <= -found.used)) == pytest.approx(0.8, abs=0.03)


def test_equal_inputs_give_equal_chances_and_identical_candidates_always_pass():
    steps = outcomes(np.random.default_rng(3), 100, 0.3)
    assert chance_equal_passes([(steps, 0.05)], 2000, 7) == chance_equal_passes([(steps, 0.05)], 2000, 7)
    assert chance_equal_passes([(np.zeros(50), 0.01)], 2000, 0) == 1.0
