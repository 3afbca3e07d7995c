"""Each rule fires on its own trouble, after so many steps in a row, and stays silent on a healthy run."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopline.rl.guards import (
    EntropyGuard,
    KLGuard,
    LengthGuard,
    Listener,
    MismatchGuard,
    RepetitionGuard,
    RolloutGuardConfig,
    rollout_guards,
)

HEALTHY = {
    "reward": 0.3,
    "entropy": 1.2,
    "policy_kl": 1e-3,
    "reference_kl": 0.05,
    "rollout/repetition": 0.02,
    "rollout/length": 20.0,
    "rollout/mismatch_kl": 1e-9,
    "rollout/mismatch_max": 1e-5,
}
TROUBLE = [
    (EntropyGuard, {"entropy": 0.01}, "warn", "entropy 0.01 nats, below 0.02: the policy has collapsed"),
    (EntropyGuard, {"entropy": 0.1}, "warn", "entropy 0.1 nats against 1.2 at first: the policy is collapsing"),
    (RepetitionGuard, {"rollout/repetition": 0.5}, "warn", "50% of the answers' word 4-grams are repetitions"),
    (LengthGuard, {"rollout/length": 45.0}, "warn", "answers of 45.0 tokens against 20.0 at first"),
    (LengthGuard, {"rollout/length": 9.0}, "warn", "answers of 9.0 tokens against 20.0 at first"),
    (KLGuard, {"policy_kl": 0.7}, "skip", "KL to the policy that sampled 0.7 nats per token, above 0.5"),
    (KLGuard, {"reference_kl": 12.0}, "skip", "KL to the reference 12 nats per token, above 10"),
    (MismatchGuard, {"rollout/mismatch_kl": 0.2, "rollout/mismatch_max": 3.0}, "stop", "at most by 3"),
]


def feed(guard, *steps):
    return [guard.check(number, {**HEALTHY, **step}) for number, step in enumerate(steps)]


@pytest.mark.parametrize(("rule", "trouble", "action", "words"), TROUBLE)
def test_trouble_is_named_after_so_many_steps_in_a_row(rule, trouble, action, words):
    guard = rule(RolloutGuardConfig(patience=3, baseline=2))
    decisions = feed(guard, {}, {}, trouble, trouble, {}, trouble, trouble, trouble, trouble)
    assert decisions[:7] == [None] * 7
    for decision in decisions[7:]:
        assert decision.action == action and words in decision.reason and decision.fix
    assert "\n" not in decisions[7].reason


@pytest.mark.parametrize(("rule", "trouble", "action", "words"), TROUBLE)
def test_the_others_do_not_mind(rule, trouble, action, words):
    others = [guard for guard in rollout_guards(RolloutGuardConfig(patience=1, baseline=1)) if type(guard) is not rule]
    assert len(others) == 4
    for guard in others:
        assert feed(guard, {}, trouble, trouble) == [None] * 3


@pytest.mark.parametrize("trouble", [{"rollout/repetition": 0.5}, {"rollout/length": 80.0}])
def test_longer_or_repetitive_answers_that_earn_more_are_no_trouble(trouble):
    for guard in rollout_guards(RolloutGuardConfig(patience=1, baseline=2)):
        assert feed(guard, {}, {}, {**trouble, "reward": 0.6}) == [None] * 3


@given(
    steps=st.lists(
        st.fixed_dictionaries(
            {
                "reward": st.floats(0, 1),
                "entropy": st.floats(0.5, 3),
                "policy_kl": st.floats(0, 0.1),
                "reference_kl": st.floats(0, 1),
                "rollout/repetition": st.floats(0, 0.2),
                "rollout/length": st.floats(15, 25),
                "rollout/mismatch_kl": st.floats(0, 1e-3),
            }
        ),
        max_size=12,
    )
)
def test_a_healthy_run_hears_nothing(steps):
    for guard in rollout_guards(RolloutGuardConfig()):
        assert [guard.check(number, step) for number, step in enumerate(steps)] == [None] * len(steps)


def test_numbers_that_are_missing_or_not_finite_are_no_evidence():
    for guard in rollout_guards(RolloutGuardConfig(patience=1, baseline=1)):
        nothing = {name: float("nan") for name in HEALTHY}
        assert [guard.check(0, {}), guard.check(1, nothing), guard.check(2, {})] == [None] * 3


@pytest.mark.parametrize(("rule", "trouble", "action", "words"), TROUBLE)
def test_a_resumed_guard_decides_as_one_never_interrupted(rule, trouble, action, words):
    steps = [{}, {}, {}, trouble, trouble, trouble, trouble]
    whole = rule(RolloutGuardConfig(baseline=3))
    expected = feed(whole, *steps)
    assert any(expected)
    for cut in range(len(steps)):
        first, second = rule(RolloutGuardConfig(baseline=3)), rule(RolloutGuardConfig(baseline=3))
        done = feed(first, *steps[:cut])
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert done + feed(second, *steps[cut:]) == expected


def test_a_listener_keeps_the_numbers_and_decides_nothing():
    listener = Listener()
    assert listener.check(3, {"loss": 1.0}) is None and listener.metrics == {"loss": 1.0}
