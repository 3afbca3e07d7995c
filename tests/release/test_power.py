"""Gates say what they can tell, and an equal candidate passes as often as they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopline.base.errors import UserError
from loopline.evaluation.statistics import paired_comparison, tango
from loopline.release.config import Power
from loopline.release.power import Margin, chance_equal_passes, equal_limits, margin_of, tango_low

TRIALS = 2000


def outcomes(rng: np.random.Generator, n: int, discordant: float, loss: float = 0.0) -> np.ndarray:
    """Differences of two systems that disagree on a share of the tasks, the first worse by `loss`."""
    apart = rng.random(n) < discordant
    return apart * np.where(rng.random(n) < (1 - loss / discordant) / 2, 1.0, -1.0)


def compared(steps: np.ndarray, seed: int = 0):
    return paired_comparison(list(np.maximum(steps, 0)), list(np.maximum(-steps, 0)), seed=seed)


def margin(steps: np.ndarray, asked: float, comparisons: int = 1, **power: object) -> Margin:
    limits = equal_limits(steps, TRIALS, 0)
    return margin_of(limits, len(steps), asked, comparisons, Power.model_validate(power), "math")


def test_the_margin_is_kept_where_the_tasks_support_it_and_widened_where_not() -> None:
    rng = np.random.default_rng(0)
    many = margin(outcomes(rng, 4000, 0.2), 0.06)
    assert many.used == many.asked == 0.06 and not many.widened and many.tasks_needed < 4000
    few = margin(outcomes(rng, 60, 0.2), 0.06)
    assert few.widened and few.used == pytest.approx(few.needed, abs=1e-5) and few.tasks_needed > 60
    with pytest.raises(UserError, match=r"math: 60 tasks do not support a margin of 0.06.*evaluate on about"):
        margin(outcomes(rng, 60, 0.2), 0.06, underpowered="refuse")


@settings(max_examples=25)
@given(st.integers(20, 400), st.floats(0.02, 0.6), st.integers(1, 8), st.booleans(), st.integers(0, 1000))
def test_an_equal_candidate_passes_all_comparisons_as_often_as_promised(
    n: int, discordant: float, comparisons: int, graded_finely: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    parts = []
    for number in range(comparisons):
        steps = outcomes(rng, n, discordant) * (rng.random(n) if graded_finely else 1.0)
        limits = equal_limits(steps, TRIALS, seed + number)
        parts.append((limits, margin_of(limits, n, 1e-6, comparisons, Power(), str(number)).used))
    assert chance_equal_passes(parts) > 0.88


@settings(max_examples=50)
@given(st.integers(1, 300), st.data())
def test_the_lower_ends_are_tangos(n: int, data: st.DataObject) -> None:
    wins = data.draw(st.integers(0, n))
    losses = data.draw(st.integers(0, n - wins))
    found = tango_low(np.asarray([wins]), np.asarray([losses]), n)
    assert found[0] == pytest.approx(tango(wins, losses, n)[0], abs=1e-6)


@pytest.mark.parametrize("finely", [False, True])
def test_real_equal_candidates_pass_as_often_as_simulated(finely: bool) -> None:
    rng = np.random.default_rng(1)
    passed, promised = 0, []
    for trial in range(200):
        steps = outcomes(rng, 300, 0.3) * (rng.random(300) if finely else 1.0)
        limit = 0.04 if finely else 0.07
        passed += compared(steps, trial).low > -limit
        promised.append(float((equal_limits(steps, 400, trial) < limit).mean()))
    assert passed / 200 == pytest.approx(float(np.mean(promised)), abs=0.08)


def test_a_loss_of_the_detectable_size_is_blocked_four_times_in_five() -> None:
    rng = np.random.default_rng(2)
    found = margin(outcomes(rng, 400, 0.25), 0.06)
    blocked = [compared(outcomes(rng, 400, 0.25, found.detectable)).low <= -found.used for _ in range(300)]
    assert float(np.mean(blocked)) == pytest.approx(0.8, abs=0.09)


def test_equal_inputs_give_equal_chances_and_few_ties_are_no_certainty() -> None:
    steps = outcomes(np.random.default_rng(3), 100, 0.3)
    assert (equal_limits(steps, TRIALS, 7) == equal_limits(steps, TRIALS, 7)).all()
    assert margin(np.zeros(5), 0.01).needed > 0.3
    assert margin(np.asarray([0.2]), 0.01).needed >= 1
    assert margin(np.zeros(2000), 0.01).needed < 0.01


def test_a_few_equal_outcomes_are_not_taken_for_certainty():
    # Ten tasks without a difference: one discordant task among twelve is assumed, so that (11 / 12)^10 of the
    # simulated candidates see none.
    limits = equal_limits([0.0] * 10, 6000, 0)
    none = -tango(0, 0, 10)[0]
    assert np.mean(np.isclose(limits, none)) == pytest.approx((11 / 12) ** 10, abs=0.03)


def test_graded_scores_are_flipped_both_ways():
    values = np.random.default_rng(0).random(200) * 0.8
    limits = equal_limits(list(values), 3000, 0)
    # Signs are even, so the mean of the simulated differences is 0 and their spread is that of the values about 0.
    expected = 1.972 * math.sqrt(float(np.mean(values**2))) / math.sqrt(200)
    assert float(np.mean(limits)) == pytest.approx(expected, rel=0.03)
    assert equal_limits([0.5], 3, 0).tolist() == [1.0] * 3 and equal_limits([2.5], 3, 0).tolist() == [2.5] * 3
