"""The thinking budget: what is written by force, when, and that it is marked."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopline.base.errors import UserError
from loopline.chat.tokenizer import THINK, THINK_END
from loopline.inference.engine import Sampling, TorchEngine
from loopline.inference.thinking import ThinkingMarks, Thought, thinking_marks
from tests.support_model import tiny_model, tiny_tokenizer

MARKS = ThinkingMarks(THINK, THINK_END, (20, THINK_END, 21))


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return TorchEngine(tiny_model(5), tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")), batch_size=3)


def thinking_tokens(ids):
    """Tokens inside thoughts, the marks not counted."""
    count, inside = 0, False
    for token in ids:
        if token in (THINK, THINK_END):
            inside = token == THINK
        else:
            count += inside
    return count


@settings(max_examples=100)
@given(
    prompt=st.lists(st.sampled_from([THINK, THINK_END, 30, 31]), max_size=5),
    drawn=st.lists(st.sampled_from([THINK, THINK_END, 30, 31, 32]), min_size=1, max_size=40),
    budget=st.integers(0, 6),
)
def test_all_thoughts_of_a_row_share_its_budget(prompt, drawn, budget):
    thought = Thought(prompt, MARKS, budget)
    written, forced = [], []
    for token in drawn:
        instead = thought.force()
        written.append(token if instead is None else instead)
        forced.append(instead is not None)
        thought.add(written[-1])
    opened = [THINK] if prompt and THINK in prompt and THINK_END not in prompt[prompt.index(THINK) :] else []
    sampled = [
        token for token, by_force in zip(written, forced, strict=True) if token in (THINK, THINK_END) or not by_force
    ]
    # Tokens of the closing that are written by force stand inside the thought, and are not the policy's.
    assert thinking_tokens([*opened, *sampled]) <= budget
    runs = "".join("f" if flag else "." for flag in forced).replace("fff", "F")
    assert "f" not in runs.rstrip("f") and len(runs) - len(runs.rstrip("f")) < 3


def test_forced_tokens_are_marked_and_count_nothing(engine):
    budget = 4
    prompt = [30, 40, THINK]
    free = engine.generate([prompt], Sampling(16, n=5, seed=3, stop_token_ids=()))[0]
    held = engine.generate([prompt], Sampling(16, n=5, seed=3, stop_token_ids=(), thinking_budget=budget))[0]
    for before, after in zip(free, held, strict=True):
        if THINK_END in before.token_ids[:budget]:
            continue
        assert after.token_ids[:budget] == before.token_ids[:budget]
        assert after.token_ids[budget] == THINK_END
        assert after.forced[: budget + 1] == [False] * budget + [True]
        assert after.logprobs[budget] == 0.0
    assert sum(sum(completion.forced) for completion in held) >= 4


def test_without_an_open_thought_nothing_is_forced(engine):
    plain = engine.generate([[30, 40]], Sampling(12, n=4))[0]
    budgeted = engine.generate([[30, 40]], Sampling(12, n=4, thinking_budget=0))[0]
    for before, after in zip(plain, budgeted, strict=True):
        if THINK not in before.token_ids:
            assert after.token_ids == before.token_ids and not after.forced


def test_the_closing_text_can_be_given_and_must_close(engine):
    closing = (25, THINK_END, 26)
    sampling = Sampling(8, stop_token_ids=(), thinking_budget=2, thinking_end=closing)
    done = engine.generate([[THINK]], sampling)[0][0]
    assert tuple(done.token_ids[2:5]) == closing and done.forced == [False] * 2 + [True] * 3 + [False] * 3
    with pytest.raises(UserError, match="does not hold"):
        thinking_marks(engine.tokenizer, (25,))


def test_a_tokenizer_without_marks_is_refused():
    with pytest.raises(UserError, match="<think>"):
        thinking_marks(object(), None)
