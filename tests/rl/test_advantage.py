"""Advantages of a group."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopline.rl.advantage import group_advantages

rewards = st.lists(st.one_of(st.none(), st.floats(-5, 5)), min_size=1, max_size=16)


@given(rewards)
def test_they_equal_the_textbook_formula(values):
    graded = [value for value in values if value is not None]
    got = group_advantages(values)
    assert [g is None for g in got] == [v is None for v in values]
    present = [g for g in got if g is not None]
    if len(graded) < 2 or max(graded) - min(graded) <= 1e-6 * max(map(abs, graded)):
        assert all(g == 0 for g in present)
        return
    mean, deviation = statistics.fmean(graded), statistics.stdev(graded)
    assert present == pytest.approx([(v - mean) / (deviation + 1e-4) for v in graded], abs=1e-9)
    assert sum(present) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("value", [0.35, 1 / 3, 0.1, 1e-9, 0.0])
@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_equal_rewards_give_exactly_zero(value, count):
    assert group_advantages([value] * count) == [0.0] * count


def test_rounding_residue_is_not_signal():
    assert group_advantages([0.35, 0.35 + 1e-9, 0.35]) == [0.0, 0.0, 0.0]


@given(rewards, st.floats(-3, 3))
def test_a_constant_added_to_all_changes_nothing_unscaled(values, shift):
    moved = [None if value is None else value + shift for value in values]
    for a, b in zip(group_advantages(values, "none"), group_advantages(moved, "none"), strict=True):
        assert a == b or abs(a - b) < 1e-4


def test_ungraded_samples_do_not_move_their_group():
    assert group_advantages([1.0, None, 0.0, None]) == [
        *group_advantages([1.0, 0.0])[:1],
        None,
        *group_advantages([1.0, 0.0])[1:],
        None,
    ]


def test_a_reward_that_is_not_a_number_is_an_error():
    with pytest.raises(ValueError, match="finite"):
        group_advantages([1.0, float("nan")])
