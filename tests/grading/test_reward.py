"""Rewards: weights, exclusions, length, repetition and flag penalties."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from loopline.grading.grade import Grade, Sample
from loopline.grading.reward import (
    LengthConfig,
    RewardConfig,
    ToggleConfig,
    budgets_hold,
    compute_rewards,
    flag_penalty,
    length_budget,
    length_cost,
    overlong_share,
    repetition,
    shape_by_length,
)
from loopline.tasks.task import task_from_row

TASK = task_from_row(
    {
        "id": "t",
        "task_set": "x",
        "messages": [{"role": "user", "content": "1+2=?"}],
        "answer": "3",
        "grader": "final_answer",
    }
)


def reward(config, grade, text="3", length=1, **components):
    found = compute_rewards(config, [Sample(TASK, text)], [grade], [length], {n: [g] for n, g in components.items()})
    return found[0]


def test_the_default_is_the_score():
    assert reward(RewardConfig(), Grade(0.25)) == 0.25


def test_what_could_not_be_graded_is_excluded_not_zero():
    assert reward(RewardConfig(), Grade(None)) is None
    config = RewardConfig(weights={"outcome": 1, "style": 0.5})
    assert reward(config, Grade(1), style=Grade(None)) is None
    assert reward(RewardConfig(weights={"outcome": 1, "style": 0}), Grade(1)) == 1


def test_components_are_weighted():
    config = RewardConfig(weights={"outcome": 1.0, "steps": 0.5, "style": 0.2})
    assert reward(config, Grade(1, (1.0, 0.0)), style=Grade(0.5)) == pytest.approx(1 + 0.25 + 0.1)
    assert reward(config, Grade(1), style=Grade(0.5)) == pytest.approx(1.1)
    with pytest.raises(KeyError):
        reward(config, Grade(1))


def test_named_graders_are_graded_once_each(graders):
    config = RewardConfig(weights={"outcome": 1.0, "naive_contains": 0.5})
    samples = [Sample(TASK, "3"), Sample(TASK, "2 3 4")]
    parts = {name: graders.grade(samples, name) for name in config.graders}
    assert compute_rewards(config, samples, graders.grade(samples), [1, 1], parts) == [1.5, 0.5]


def test_soft_overlong_punishment_at_both_edges():
    config = RewardConfig(overlong_from=10, overlong_to=20, overlong_penalty=0.5)
    expected = {1: 1.0, 10: 1.0, 11: 0.95, 15: 0.75, 20: 0.5, 21: 0.5, 500: 0.5}
    assert {n: reward(config, Grade(1), length=n) for n in expected} == pytest.approx(expected)


@given(st.integers(0, 200), st.integers(1, 50), st.integers(1, 50))
def test_overlong_share_is_monotone_and_bounded(length, start, width):
    config = RewardConfig(overlong_from=start, overlong_to=start + width + 1)
    assert 0 <= overlong_share(config, length) <= overlong_share(config, length + 1) <= 1


def test_repetition_counts_repeated_runs_of_words():
    assert repetition("one two three four five") == 0
    assert repetition("a b c") == 0
    assert repetition("go on " * 50) > 0.9
    config = RewardConfig(repetition_penalty=1.0)
    assert reward(config, Grade(1), "go on " * 50) < 0.1 < reward(config, Grade(1), "one two three four five") == 1


def test_flag_penalties():
    penalties = {"hack_*": 0.5, "timeout": 0.1}
    assert flag_penalty(penalties, ["hack_exit", "hack_open"]) == 0.5
    assert flag_penalty(penalties, ["hack_exit", "timeout"]) == pytest.approx(0.6)
    assert flag_penalty(penalties, ["truncated"]) == 0
    assert reward(RewardConfig(flag_penalties=penalties), Grade(0, flags=("hack_exit",))) == -0.5


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"weights": {}}, "no component"),
        ({"weights": {"outcome": 0}}, "no component"),
        ({"overlong_from": 5}, "both overlong_from and overlong_to"),
        ({"overlong_from": 5, "overlong_to": 5}, "larger than"),
        ({"overlong_penalty": -1}, "greater than or equal"),
        ({"lenght_penalty": 1}, "Extra inputs"),
    ],
)
def test_bad_configs_say_what_to_do(fields, said):
    with pytest.raises(ValidationError, match=said):
        RewardConfig(**fields)


def test_lists_of_different_length_are_refused():
    with pytest.raises(ValueError, match="zip"):
        compute_rewards(RewardConfig(), [Sample(TASK, "3")], [], [1])


@given(st.floats(0, 50), st.floats(0.01, 10), st.floats(0, 1), st.floats(0.01, 5))
def test_length_costs_more_the_longer_but_ever_less_per_token(length, rate, curvature, more):
    cost = [length_cost(length + n * more, rate, curvature) for n in range(3)]
    assert cost[0] >= 0 and cost[1] > cost[0]
    first, second = cost[1] - cost[0], cost[2] - cost[1]
    assert second <= first + 1e-9 * max(1.0, first)
    if curvature == 0:
        assert cost[0] == pytest.approx(length)
    else:
        assert cost[0] <= length + 1e-9


def test_length_cost_is_the_published_formula_and_continuous_where_it_becomes_a_logarithm():
    assert length_cost(3.0, 2.0, 0.5) == pytest.approx((7**0.5 - 1) / (2 * 0.5))
    assert length_cost(3.0, 2.0, 1 - 1e-9) == pytest.approx(length_cost(3.0, 2.0, 1.0), abs=1e-6)
    assert length_cost(0.0, 2.0, 1.0) == length_cost(0.0, 2.0, 0.5) == 0


def test_brevity_counts_only_as_far_as_the_prompt_is_solved():
    config = LengthConfig(cost=0.2, tokens=10, curvature=0.0)
    lengths = [10, 20, 30, 40]
    failed = shape_by_length(config, [0.0] * 4, [0.0] * 4, lengths)
    assert failed == [0.0] * 4, "where nothing is solved, no answer may be better for being short"
    half = shape_by_length(config, [1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], lengths)
    assert half == pytest.approx([0.9, 0.8, -0.3, -0.4])
    solved = shape_by_length(config, [1.0] * 4, [1.0] * 4, lengths)
    assert solved == pytest.approx([0.8, 0.6, 0.4, 0.2]), "a solved prompt teaches brevity"
    always = LengthConfig(cost=0.2, tokens=10, curvature=0.0, only_solved=False)
    assert shape_by_length(always, [0.0], [0.0], [10]) == pytest.approx([-0.2])


def test_what_could_not_be_graded_stays_excluded_and_moves_no_share():
    config = LengthConfig(cost=0.2, tokens=10, curvature=0.0)
    assert shape_by_length(config, [None, 1.0], [None, 1.0], [50, 10]) == [None, pytest.approx(0.8)]


rewards_of_a_prompt = st.lists(
    st.tuples(st.sampled_from([None, 0.0, 0.5, 1.0]), st.integers(1, 400)), min_size=1, max_size=8
)


@given(rewards_of_a_prompt, st.integers(0, 9), st.integers(1, 400))
def test_by_default_length_changes_no_reward(rows, step, budget):
    scores, lengths = [score for score, _ in rows], [length for _, length in rows]
    assert shape_by_length(LengthConfig(), scores, scores, lengths, step, budget) == scores


def test_budgets_hold_in_every_other_phase_and_only_where_the_prompt_is_solved():
    toggle = ToggleConfig(every=2, accuracy=0.5)
    assert [budgets_hold(toggle, step) for step in range(6)] == [True, True, False, False, True, True]
    assert not any(budgets_hold(ToggleConfig(), step) for step in range(6))
    config = LengthConfig(toggle=toggle)
    scores, lengths = [1.0, 1.0, 0.0, None], [10, 20, 10, 10]
    assert shape_by_length(config, scores, scores, lengths, 0, 15) == [1.0, 0.0, 0.0, None]
    assert shape_by_length(config, scores, scores, lengths, 2, 15) == scores
    assert shape_by_length(config, scores, scores, lengths, 0, None) == scores
    rarely = [1.0, 0.0, 0.0, 0.0]
    assert shape_by_length(config, rarely, rarely, [20] * 4, 0, 15) == rarely, "too hard for a budget"
    penalized = [-0.5, 1.0]
    assert shape_by_length(config, penalized, [0.0, 1.0], [20, 10], 0, 15) == penalized, "a budget pays nobody"


@given(rewards_of_a_prompt, st.floats(0.05, 1))
def test_a_budget_is_the_length_of_a_correct_answer(rows, percentile):
    scores, lengths = [score for score, _ in rows], [length for _, length in rows]
    budget = length_budget(ToggleConfig(every=1, percentile=percentile), scores, lengths)
    correct = [length for score, length in rows if score == 1]
    if not correct:
        assert budget is None
    else:
        assert budget in correct
        assert sum(length <= budget for length in correct) >= percentile * len(correct) - 1e-9
