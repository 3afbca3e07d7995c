"""Rewards: weights, exclusions, length, repetition and flag penalties."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from throughline.grading.grade import Grade, Sample
from throughline.grading.reward import (
    RewardConfig,
    compute_rewards,
    flag_penalty,
    grade_components,
    overlong_share,
    repetition,
)
from throughline.grading.tasks import task_from_row

TASK = task_from_row(
    {
        "id": "t",
        "family": "x",
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
    parts = grade_components(config, graders, samples)
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
