"""Stock chat templates: the ids `transformers` gives, and exact masks without any marks in the template."""

import datetime
import json

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from loopline.base.errors import UserError
from loopline.chat.load import load_tokenizer
from loopline.chat.stock_tokenizer import StockTokenizer
from loopline.chat.tokenizer import Tokenizer
from loopline.training.conversations import conversation_example
from tests.chat.templates import CONTROL, INNER, TEMPLATES, save_stock
from tests.support_model import tiny_tokenizer

CALL = {"type": "function", "function": {"name": "search", "arguments": {"query": "blue lamp"}}}
SYSTEM, ASK, AGAIN = (
    {"role": r, "content": c} for r, c in (("system", "Be brief."), ("user", "6 x 7?"), ("user", "And +1?"))
)
CONVERSATIONS = {
    "one turn": [ASK, {"role": "assistant", "content": "42"}],
    "system and two turns": [
        SYSTEM,
        ASK,
        {"role": "assistant", "content": "42"},
        AGAIN,
        {"role": "assistant", "content": "43"},
    ],
    "same words": [ASK, {"role": "assistant", "content": "6 x 7?"}, ASK, {"role": "assistant", "content": "6 x 7?"}],
    "ends with the user": [ASK, {"role": "assistant", "content": "42"}, AGAIN],
    "call": [
        ASK,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "a lamp"},
        {"role": "assistant", "content": "Found."},
    ],
    "call with words": [
        ASK,
        {"role": "assistant", "content": "I look.", "tool_calls": [CALL, CALL]},
        {"role": "tool", "content": "a lamp"},
        {"role": "tool", "content": ""},
        {"role": "assistant", "content": "Found."},
        AGAIN,
        {"role": "assistant", "content": "None."},
    ],
    "thoughts": [
        ASK,
        {"role": "assistant", "content": "<think>\n6 x 7 = 42\n</think>\n\n42"},
        AGAIN,
        {"role": "assistant", "content": "<think>\n42 + 1\n</think>\n\n43"},
    ],
    "thoughts apart": [
        ASK,
        {"role": "assistant", "content": "42", "reasoning_content": "six sevens"},
        AGAIN,
        {"role": "assistant", "content": "43", "reasoning_content": "one more"},
        ASK,
    ],
    "thoughts about calls": [
        SYSTEM,
        ASK,
        {"role": "assistant", "content": "<think>\nlook\n</think>\n\nI look."},
        {"role": "tool", "content": "a lamp"},
        {"role": "assistant", "content": "<think>\nseen\n</think>\n\nA lamp."},
        AGAIN,
        {"role": "assistant", "content": "No."},
    ],
}
FITS = {
    "chatml": [name for name in CONVERSATIONS if not name.startswith("call")],
    "headers": [name for name in CONVERSATIONS if name != "call with words"],
    "calls": list(CONVERSATIONS),
    "thinking": [name for name in CONVERSATIONS if not name.startswith("call")],
    "brackets": ["one turn", "same words", "ends with the user", "thoughts", "thoughts apart"],
}
CASES = [(kind, name) for kind, names in FITS.items() for name in names]


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    root = tmp_path_factory.mktemp("stock")
    return {
        (kind, mark): save_stock(root / f"{kind}{mark}", kind, mark) for kind in TEMPLATES for mark in (False, True)
    }


def reference(path, messages, **settings):
    """Ids and mask as `transformers` renders them from a template with marks, and its wall clock's day."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    out = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, **settings
    )
    return out["input_ids"], [bool(number) for number in out["assistant_masks"]]


def stock(path):
    """Ours, on the day of the clock that `transformers` asks."""
    tokenizer = load_tokenizer(path)
    assert isinstance(tokenizer, StockTokenizer)
    source = json.loads((path / "tokenizer_config.json").read_text())
    named = {name: source[name] for name in ("bos_token", "eos_token", "pad_token")}
    return StockTokenizer(tokenizer.fast, source["chat_template"], named, today=datetime.date.today())


def as_taken(path, messages):
    """Messages with reasoning in the text where the template would drop it."""
    tokenizer = stock(path)
    return tokenizer.abilities.prepare(messages, None, tokenizer.form)[0]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_masks_of_templates_without_marks_equal_those_of_marked_ones(directories, kind, name):
    messages = CONVERSATIONS[name]
    ids, mask = stock(directories[kind, False]).render_with_mask(messages, allow=("reasoning",))
    expected_ids, expected_mask = reference(directories[kind, True], as_taken(directories[kind, False], messages))
    assert ids == expected_ids
    assert mask == expected_mask
    assert (ids, mask) == stock(directories[kind, True]).render_with_mask(messages, allow=("reasoning",))
    assert any(mask)


@pytest.mark.parametrize(("kind", "name"), CASES)
@pytest.mark.parametrize("settings", [{}, {"enable_thinking": False}])
def test_prompts_equal_those_of_transformers(directories, kind, name, settings):
    path = directories[kind, False]
    messages = CONVERSATIONS[name]
    messages = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    ours = stock(path).render(messages, add_generation_prompt=True, **settings)
    theirs = transformers.AutoTokenizer.from_pretrained(path).apply_chat_template(
        as_taken(path, messages), add_generation_prompt=True, tokenize=True, return_dict=False, **settings
    )
    assert ours == theirs


@pytest.mark.parametrize("kind", TEMPLATES)
def test_an_answer_is_learnt_right_behind_the_prompt_it_was_sampled_from(directories, kind):
    """Also where a newline at its start would have become one token with the newline that ends the prompt."""
    tokenizer = stock(directories[kind, False])
    for text in ("42", "\n42", "\n\n 42", " 42"):
        prompt = tokenizer.render([ASK], add_generation_prompt=True)
        ids, mask = tokenizer.render_with_mask([ASK, {"role": "assistant", "content": text}])
        assert ids[: len(prompt)] == prompt
        assert not any(mask[: len(prompt)]) and mask[len(prompt)]
        assert ids[max(k for k, wrote in enumerate(mask) if wrote)] in tokenizer.stop_ids


words = st.text(st.sampled_from("ab \n<>|/x7é"), max_size=12)
spelled = st.lists(st.one_of(words, st.sampled_from([*CONTROL, *INNER[2:], "<|", "<|im_<|im_end|>end|>"])), max_size=4)
contents = spelled.map("".join)


@settings(max_examples=60)
@given(data=st.data(), kind=st.sampled_from(["chatml", "calls", "thinking", "headers"]))
def test_masked_text_is_what_the_assistant_said_whatever_anybody_writes(directories, data, kind):
    """Control tokens spelled in messages stay text, and the masked tokens decode to the assistant's turns in order."""
    messages = []
    for _ in range(data.draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": data.draw(contents)})
        messages.append({"role": "assistant", "content": data.draw(contents)})
    tokenizer = stock(directories[kind, False])
    ids, mask = tokenizer.render_with_mask(messages)
    end = tokenizer.end_id
    said = []
    for place, (number, wrote) in enumerate(zip(ids, mask, strict=True)):
        if wrote and not mask[place - 1]:
            said.append([])
        if wrote:
            said[-1].append(number)
    assert len(said) == len(messages) // 2
    for turn, message in zip(said, messages[1::2], strict=True):
        assert turn.pop() == end and end not in turn
        text = tokenizer.decode(turn)
        if kind == "thinking":
            text = text.removeprefix("<think>\n\n</think>\n\n")
            assert text in (message["content"], message["content"].lstrip("\n"))
        else:
            assert text == (message["content"].strip() if kind == "headers" else message["content"])
    starts = tokenizer.fast.token_to_id("<|start_header_id|>" if kind == "headers" else "<|im_start|>")
    assert ids.count(starts) == len(messages) + (kind in ("headers", "calls"))


def test_history_is_masked_as_it_was_rewritten(directories):
    tokenizer = stock(directories["thinking", False])
    ids, mask = tokenizer.render_with_mask(CONVERSATIONS["thoughts"], trained_from=3)
    said = tokenizer.decode([number for number, wrote in zip(ids, mask, strict=True) if wrote])
    assert said == "42<|im_end|><think>\n42 + 1\n</think>\n\n43<|im_end|>"
    assert "6 x 7 = 42" not in tokenizer.decode(ids)
    assert (ids, mask) == tokenizer.render_with_mask(CONVERSATIONS["thoughts"], allow=("reasoning",))
    with pytest.raises(UserError, match=r"row 5: the chat template drops or changes the reasoning of message 1.*allow"):
        tokenizer.render_with_mask(CONVERSATIONS["thoughts"], name="row 5")


def test_a_prompt_that_closes_the_thinking_block_leaves_it_out_of_the_mask(directories):
    tokenizer = stock(directories["thinking", False])
    messages = CONVERSATIONS["system and two turns"]
    ids, mask = tokenizer.render_with_mask(messages, enable_thinking=False)
    assert tokenizer.decode([n for n, wrote in zip(ids, mask, strict=True) if wrote]) == "42<|im_end|>43<|im_end|>"
    prompt = tokenizer.render(messages[:-1], add_generation_prompt=True, enable_thinking=False)
    assert ids[: len(prompt)] == prompt


def test_stop_ids_come_from_every_file_and_from_the_template(tmp_path):
    path = save_stock(tmp_path / "a", "chatml", eos_token="<|endoftext|>")
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 6]}))
    tokenizer = load_tokenizer(path)
    names = ("<|endoftext|>", "<|im_end|>")
    assert set(tokenizer.stop_ids) == {5, 6, *map(tokenizer.fast.token_to_id, names)}
    assert tokenizer.end_id == tokenizer.pad_id == tokenizer.fast.token_to_id("<|endoftext|>")
    # A base model's tokenizer does not count the template's closing token among its ends; the mask does.
    ids, mask = tokenizer.render_with_mask(CONVERSATIONS["one turn"])
    assert tokenizer.decode([n for n, wrote in zip(ids, mask, strict=True) if wrote]) == "42<|im_end|>"


@pytest.mark.parametrize(
    ("closes", "declared", "expected"),
    [
        # The stop token is not the first control token behind the text.
        ("<|eot_id|><|im_end|>", "<|im_end|>", "42<|eot_id|><|im_end|>"),
        # The document's end stands behind the whole conversation, not behind turns.
        ("<|im_end|>", "<|endoftext|>", "42<|im_end|>"),
    ],
)
def test_a_turn_ends_with_its_own_stop_token(tmp_path, closes, declared, expected):
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '" + closes + "' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% else %}{{ '<|endoftext|>' }}{% endif %}"
    )
    tokenizer = load_tokenizer(save_stock(tmp_path / "a", "chatml", chat_template=template, eos_token=declared))
    for name in ("one turn", "ends with the user"):
        ids, mask = tokenizer.render_with_mask(CONVERSATIONS[name])
        assert tokenizer.decode([n for n, wrote in zip(ids, mask, strict=True) if wrote]) == expected
    assert tokenizer.fast.token_to_id("<|eot_id|>") not in tokenizer.stop_ids


@pytest.mark.parametrize("form", ["jinja file", "list"])
def test_templates_are_found_where_checkpoints_keep_them(tmp_path, form):
    plain = load_tokenizer(save_stock(tmp_path / "a", "chatml"))
    template = TEMPLATES["chatml"][0](False)
    if form == "list":
        named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": template}]
        path = save_stock(tmp_path / "b", "chatml", chat_template=named)
    else:
        path = save_stock(tmp_path / "b", "chatml", chat_template=None)
        (path / "chat_template.jinja").write_text(template)
    messages = CONVERSATIONS["one turn"]
    assert load_tokenizer(path).render_with_mask(messages) == plain.render_with_mask(messages)


def test_our_own_tokenizer_is_recognised(tmp_path):
    tiny_tokenizer(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert type(loaded) is Tokenizer
    assert loaded.stop_ids == (1,)
    question = [{"role": "user", "content": "a"}]
    asked = loaded.render(question, add_generation_prompt=True)
    assert loaded.render(question, add_generation_prompt=True, enable_thinking=True) == [*asked, 6]
    assert loaded.render(question, add_generation_prompt=True, enable_thinking=False) == [*asked, 6, 7]


UNPROVABLE = {
    "no end": "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}",
    "shouted": "{% for m in messages %}{{ '<|im_start|>' + m.content | upper + '<|im_end|>' }}{% endfor %}",
    "reversed": (
        "{% for m in messages | reverse %}{{ '<|im_start|>' + m.role + ' ' + m.content + '<|im_end|>' }}{% endfor %}"
    ),
}


@pytest.mark.parametrize("kind", UNPROVABLE)
def test_what_cannot_be_proved_is_refused_by_name(tmp_path, kind):
    path = save_stock(tmp_path / "a", "chatml", chat_template=UNPROVABLE[kind])
    messages = CONVERSATIONS["system and two turns"]
    tokenizer = load_tokenizer(path)
    if kind == "shouted":
        # Each turn follows what came before and closes with the end token, so this can be proved all the same.
        ids, mask = tokenizer.render_with_mask(messages, name="row 7")
        assert tokenizer.decode([n for n, wrote in zip(ids, mask, strict=True) if wrote]) == (
            "<|im_start|>42<|im_end|><|im_start|>43<|im_end|>"
        )
        return
    with pytest.raises(UserError, match=r"row 7.*cannot be told.*Fix:"):
        tokenizer.render_with_mask(messages, name="row 7")
    assert tokenizer.render(messages)


def test_a_refusal_by_the_template_names_the_row(directories):
    tokenizer = stock(directories["brackets", False])
    with pytest.raises(UserError, match=r"row 3.*roles must alternate"):
        tokenizer.render_with_mask([ASK, AGAIN, {"role": "assistant", "content": "a"}], name="row 3")
    with pytest.raises(UserError, match=r"row 4.*without a role"):
        tokenizer.render_with_mask([{"content": "a"}], name="row 4")


def test_templates_cannot_leave_the_sandbox(tmp_path):
    template = "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ messages.append(1) }}"
    tokenizer = load_tokenizer(save_stock(tmp_path / "a", "chatml", chat_template=template))
    with pytest.raises(UserError, match="refuses"):
        tokenizer.render([ASK])
    broken = save_stock(tmp_path / "b", "chatml", chat_template="{% for m in %}")
    with pytest.raises(UserError, match="syntax error in line 1"):
        load_tokenizer(broken)
    none = load_tokenizer(save_stock(tmp_path / "c", "chatml", chat_template=None))
    with pytest.raises(UserError, match="no chat template"):
        none.render([ASK])


def test_an_untruncated_row_without_an_assistant_is_an_error(directories):
    with pytest.raises(UserError, match="row 9 has no assistant turn"):
        conversation_example(stock(directories["chatml", False]), [ASK], "row 9")


def test_tokenizers_that_put_a_space_before_a_text_are_masked_by_offsets(tmp_path):
    """SentencePiece-like: pieces alone get other ids, so the text is encoded whole; no token may cross an edge."""
    fast = FastTokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    fast.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=90, special_tokens=["<unk>", *CONTROL[:3]], show_progress=False)
    fast.train_from_iterator(["the lamp costs seven coins assistant user 42 43 6 x 7 + 1 And B ? . \n"] * 3, trainer)
    tokenizer = StockTokenizer(fast, TEMPLATES["chatml"][0](False), {"eos_token": "<|im_end|>"})
    assert not tokenizer.joins
    ids, mask = tokenizer.render_with_mask([ASK, {"role": "assistant", "content": "42"}])
    assert ids == fast.encode("<|im_start|>user\n6 x 7?<|im_end|>\n<|im_start|>assistant\n42<|im_end|>\n").ids
    assert "42" in tokenizer.decode([n for n, wrote in zip(ids, mask, strict=True) if wrote])
    with pytest.raises(UserError, match="spells a control token"):
        tokenizer.render_with_mask([ASK, {"role": "assistant", "content": "<|im_end|>"}])
