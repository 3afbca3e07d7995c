"""The sentence of a step says what is the matter, whatever is the matter."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopline.grading.grade import Grade
from loopline.inference.engine import Completion
from loopline.rl.advantage import group_advantages
from loopline.rl.explain import StepFacts, explain
from loopline.tasks.task import Task
from tests.rl.support import make_group

TASK = Task(id="t", task_set="arithmetic", messages=({"role": "user", "content": "1+1=?"},), answer="2", grader="g")


def group(*scores, finish="stop", text="2", tokens=3):
    """A group with these scores, rewarded by them."""
    completions = [Completion([5] * tokens, [-1.0] * tokens, finish, 0) for _ in scores]
    grades = [Grade(score) for score in scores]
    return make_group(completions, grades, list(scores), group_advantages(list(scores), "group"), text, TASK)


def sentence(*groups):
    return explain(StepFacts.of(groups))


SOLVED, FAILED, MIXED, PARTIAL = group(1, 1, 1, 1), group(0, 0, 0, 0), group(1, 0, 0, 1), group(0.5, 0.5, 0.5, 0.5)
CUT, UNGRADED = group(0, 0, 0, 0, finish="length"), group(None, None, None, None)


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        (
            [MIXED, MIXED, SOLVED, FAILED],
            "reward 0.50; groups 25% solved, 50% mixed, 25% failed; learning from the mixed groups.",
        ),
        (
            [SOLVED] * 4,
            "reward 1.00; groups 100% solved, 0% mixed, 0% failed; nothing to learn: "
            "every group is solved already, use harder tasks or stop.",
        ),
        (
            [FAILED] * 9 + [MIXED],
            "reward 0.05; groups 0% solved, 10% mixed, 90% failed; little to learn: "
            "most groups fail, train longer before or use easier tasks.",
        ),
        (
            [CUT] * 4,
            "reward 0.00; groups 0% solved, 0% mixed, 100% failed; nothing to learn: "
            "every answer is cut off, raise max_new_tokens.",
        ),
        (
            [UNGRADED] * 2,
            "reward 0.00; groups 0% solved, 0% mixed, 0% failed; 8 answers could not be graded; nothing to learn: "
            "most answers could not be graded, fix the grader.",
        ),
        (
            [PARTIAL] * 3,
            "reward 0.50; groups 0% solved, 100% mixed, 0% failed; nothing to learn: "
            "the answers to a prompt all earn the same, use a grader that scores them differently.",
        ),
        (
            [SOLVED, FAILED],
            "reward 0.50; groups 50% solved, 0% mixed, 50% failed; nothing to learn: "
            "groups are solved or failed altogether, use tasks in between or larger groups.",
        ),
    ],
)
def test_each_cause_has_its_words(groups, expected):
    assert sentence(*groups) == expected


def test_one_ungradable_answer_is_counted_and_does_not_hide_the_signal():
    assert sentence(group(1, None, 0, 0), MIXED) == (
        "reward 0.43; groups 0% solved, 100% mixed, 0% failed; 1 answer could not be graded; "
        "learning from the mixed groups."
    )


groups_strategy = st.lists(
    st.builds(
        lambda scores, finish, text: group(*scores, finish=finish, text=text),
        st.lists(st.sampled_from([None, 0.0, 0.5, 1.0]), min_size=2, max_size=4),
        st.sampled_from(["stop", "length"]),
        st.sampled_from(["2", "<think>1+1=2</think>2"]),
    ),
    min_size=1,
    max_size=8,
)


@given(groups=groups_strategy)
def test_shares_are_counts_over_the_step(groups):
    facts = StepFacts.of(groups)
    answers = [(c, g, r, t) for x in groups for c, g, r, t in zip(x.completions, x.grades, x.rewards, x.texts)]  # noqa: B905
    total = len(answers)
    assert facts.ungradable == sum(grade.score is None for _, grade, _, _ in answers)
    assert facts.ungradable_share == pytest.approx(facts.ungradable / total)
    assert facts.truncated == pytest.approx(sum(c.finish == "length" for c, _, _, _ in answers) / total)
    assert facts.thinking == pytest.approx(sum(t.startswith("<think>") for _, _, _, t in answers) / total)
    ungraded = sum(all(grade.score is None for grade in x.grades) for x in groups) / len(groups)
    assert facts.solved + facts.failed + facts.mixed + ungraded == pytest.approx(1)
    graded = [r for _, _, r, _ in answers if r is not None]
    assert facts.reward == pytest.approx(sum(graded) / len(graded) if graded else 0)
    assert facts.metrics()["rollout/zero_signal_share"] == pytest.approx(
        sum(len({r for r in x.rewards if r is not None}) < 2 for x in groups) / len(groups)
    )


@given(groups=groups_strategy)
def test_a_step_without_signal_always_says_why(groups):
    text = sentence(*groups)
    assert "\n" not in text and text.endswith(".") and len(text) < 220
    signal = any(len({r for r in x.rewards if r is not None}) > 1 for x in groups)
    assert ("nothing to learn: " in text) == (not signal)
