"""Stop texts: found at the first token that completes them, wherever tokens divide them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopline.inference.engine import Sampling, TorchEngine
from loopline.inference.stops import StopTexts
from tests.support_model import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def first_end(tokenizer, ids, stops):
    """The shortest run of ids whose text holds a stop text, by decoding every run."""
    for size in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:size])
        found = [(text.find(stop), stop) for stop in stops if stop in text]
        if found:
            return size, min(found)[1]
    return None


@settings(max_examples=120)
@given(
    text=st.text(alphabet="abo ét☃\n", max_size=30),
    stops=st.lists(st.text(alphabet="abo ét☃\n", min_size=1, max_size=4), min_size=1, max_size=3),
    rest=st.lists(st.integers(0, 299), max_size=6),
)
def test_a_stop_text_is_found_with_its_last_token(tokenizer, text, stops, rest):
    ids = [*rest, *tokenizer.encode(text)]
    checker = StopTexts(tokenizer, stops)
    found = next(((size, text) for size in range(1, len(ids) + 1) if (text := checker.ended(ids[:size]))), None)
    assert found == first_end(tokenizer, ids, stops)


def test_rows_end_at_a_stop_text_and_keep_it(tokenizer):
    engine = TorchEngine(tiny_model(5), tokenizer, batch_size=5)
    prompts = [[30 + i, 60] for i in range(6)]
    free = engine.generate(prompts, Sampling(40, n=2, stop_token_ids=()))
    # A text of two tokens that one of the rows wrote.
    stop = tokenizer.decode(free[2][1].token_ids[8:10])
    stopped = engine.generate(prompts, Sampling(40, n=2, stop_token_ids=(), stop=(stop,)))
    ended = 0
    for before, after in zip(free, stopped, strict=True):
        for whole, cut in zip(before, after, strict=True):
            end = first_end(tokenizer, whole.token_ids, [stop])
            assert cut.token_ids == whole.token_ids[: end[0] if end else 40]
            assert (cut.finish, cut.stop_text) == (("stop", stop) if end else ("length", None))
            assert len(cut.logprobs) == len(cut.policy_versions) == len(cut.token_ids)
            ended += bool(end)
    assert ended
