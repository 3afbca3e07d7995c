"""One row for every answer: what it says, and that nothing sampled is lost in it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopline.attempts.attempt import Attempt, attempt_from_row
from loopline.base.errors import UserError
from loopline.base.files import to_json
from loopline.grading.grade import Grade
from loopline.inference.completion import Completion
from tests.rl.support import task

FLOATS = st.floats(-50, 0)
GRADES = st.builds(
    Grade,
    st.sampled_from([None, 0.0, 0.25, 1.0]),
    st.lists(st.floats(0, 1), max_size=3).map(tuple),
    st.text(max_size=5),
    st.sampled_from([(), ("truncated",), ("a", "b")]),
)


@st.composite
def completions(draw):
    size = draw(st.integers(0, 4))
    lists = {
        "policy_versions": st.integers(0, 9),
        "forced": st.booleans(),
        "kept": st.integers(1, 300),
        "kept_logmass": FLOATS,
        "kept_sets": st.binary(min_size=2, max_size=2),
    }
    names = draw(st.sets(st.sampled_from(sorted(lists))))
    chosen = {name: draw(st.lists(lists[name], min_size=size, max_size=size)) for name in sorted(names)}
    return Completion(
        draw(st.lists(st.integers(0, 299), min_size=size, max_size=size)),
        draw(st.lists(FLOATS, min_size=size, max_size=size)),
        draw(st.sampled_from(["stop", "length", "interrupted"])),
        draw(st.integers(0, 3)),
        **chosen,
        stop_text=draw(st.none() | st.just("\n\n")),
        number=draw(st.integers(0, 2)),
    )


ATTEMPTS = st.builds(
    Attempt,
    st.just(task(1)),
    st.integers(0, 3),
    st.lists(st.integers(0, 299), max_size=3).map(tuple),
    completions(),
    st.text(max_size=8),
    st.none() | GRADES,
    st.dictionaries(st.sampled_from(["steps", "style"]), GRADES),
    st.booleans(),
)


@given(ATTEMPTS)
def test_a_row_with_tokens_is_the_attempt(attempt):
    row = json.loads(to_json(attempt.to_row(tokens=True)))
    assert attempt_from_row(row, {attempt.task.id: attempt.task}) == attempt


@given(ATTEMPTS)
def test_a_row_without_tokens_is_a_part_of_one_with_them(attempt):
    plain, whole = attempt.to_row(), attempt.to_row(tokens=True)
    assert plain == {name: value for name, value in whole.items() if name != "sampled"}
    # Not graded, and could not be graded, are two things.
    assert ("score" in plain) == (attempt.grade is not None)
    with pytest.raises(UserError, match="holds no tokens"):
        attempt_from_row(plain, {attempt.task.id: attempt.task})
    with pytest.raises(UserError, match="a task that is not at hand"):
        attempt_from_row(whole, {})
