"""The tokenizer: single digits, any text round-trips, fixed special ids, parity with transformers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopline.base.errors import UserError
from loopline.chat.tokenizer import SPECIAL_TOKENS, Tokenizer
from loopline.corpus.config import PythonConfig
from loopline.corpus.document import make_document
from loopline.corpus.python_source import read_python
from loopline.corpus.tokenizer import plain, save, train, training_texts

CONVERSATION = [
    {"role": "system", "content": "Answer in one word.\n"},
    {"role": "user", "content": "  What is 12+5-3?"},
    {"role": "assistant", "content": "<think>12+5=17;17-3=14</think>14"},
    {"role": "user", "content": "Look it up.\n\n"},
    {"role": "assistant", "content": '<tool_call>{"name": "search", "arguments": {"query": "blue lamp"}}</tool_call>'},
    {"role": "tool", "content": "The blue lamp costs 7 coins. é漢"},
    {"role": "assistant", "content": "7"},
]


@pytest.fixture(scope="module")
def fast():
    texts = read_python(
        PythonConfig(code_megabytes=0.3, docstring_megabytes=0.3, readme_megabytes=0, licence_megabytes=0)
    )
    return train([document.text for document in texts], 512)


@pytest.fixture(scope="module")
def directory(fast, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    save(fast, path)
    return path


def test_special_tokens_have_the_fixed_ids(directory):
    tokenizer = Tokenizer.load(directory)
    assert tokenizer.vocab_size == 512
    assert [tokenizer.encode(token) for token in SPECIAL_TOKENS] == [[number] for number in range(10)]


@given(st.text())
def test_any_text_survives(fast, text):
    assert fast.decode(fast.encode(text).ids, skip_special_tokens=False) == text
    bare = plain(fast)
    assert bare.decode(bare.encode(text).ids, skip_special_tokens=False) == text


@given(st.text(st.sampled_from("0123456789 +-=ab."), max_size=40))
def test_every_digit_is_a_token_of_its_own(fast, text):
    tokens = fast.encode(text).tokens
    digits = [token for token in tokens if any(character.isdigit() for character in token)]
    assert all(len(token) == 1 for token in digits)
    assert len(digits) == sum(character.isdigit() for character in text)


def test_the_plain_tokenizer_writes_no_marks(fast):
    text = "a<|end|>b<think>c"
    bare = plain(fast)
    ids = bare.encode(text).ids
    assert min(ids) >= 10
    assert bare.decode(ids) == text
    assert 1 in fast.encode(text).ids
    assert bare.encode("def f(x): return 12").ids == fast.encode("def f(x): return 12").ids


def test_transformers_loads_it_and_renders_the_same_chat(directory):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(str(directory))
    ours = Tokenizer.load(directory)
    for end in range(1, len(CONVERSATION) + 1):
        part = CONVERSATION[:end]
        ids, mask = ours.render_with_mask(part)
        if part[-1]["role"] == "assistant":
            rendered = theirs.apply_chat_template(part, return_dict=True, return_assistant_tokens_mask=True)
            assert rendered["input_ids"] == ids
            assert [bool(value) for value in rendered["assistant_masks"]] == mask
        prompt = theirs.apply_chat_template(part, add_generation_prompt=True, return_dict=True)["input_ids"]
        assert prompt == ours.render(part, add_generation_prompt=True)
    for text in ("def f(x):\n    return x[10:]", "é漢\U0001f600 1234", "  two  spaces "):
        ids = theirs.encode(text, add_special_tokens=False)
        assert ids == ours.encode(text)
        assert theirs.decode(ids) == text
    assert (theirs.pad_token_id, theirs.eos_token_id, len(theirs)) == (0, 1, 512)


def test_too_little_text_for_the_vocabulary_is_refused():
    with pytest.raises(UserError, match="supports a vocabulary of 2.. tokens, not 5000"):
        train(["a small text"], 5000)


def test_training_text_follows_the_weights_and_includes_tasks_without_marks():
    documents = [make_document(name, str(n), name * 50) for name in ("a", "b", "c") for n in range(40)]
    tasks = [{"id": "t", "messages": CONVERSATION[:2], "responses": [{"messages": CONVERSATION[2:]}]}]
    texts = list(training_texts(documents, {"a": 0.75, "b": 0.25}, tasks, 4000, 0.1))
    size = {name: sum(text.count(name) for text in texts if set(text) == {name}) for name in "abc"}
    assert size == {"a": 2700, "b": 900, "c": 0}
    rest = "".join(text for text in texts if len(set(text)) > 1)
    assert "12+5=17;17-3=14" in rest
    assert not any(token in rest for token in SPECIAL_TOKENS)
    # A source too small for its share is repeated, but not without end.
    assert len(list(training_texts(documents[:1], {"a": 1.0}, [], 10**6, 0.1))) == 8
