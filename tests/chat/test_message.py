"""Messages and texts, both ways: nothing the model wrote is lost, and a bad message is named by its key."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopline.chat.forms.form import Call
from loopline.chat.message import AssistantMessage, MessageError, as_turns
from loopline.chat.parser import OWN, parse_output, recorded
from loopline.chat.thinking import read_thinking
from tests.support_model import tiny_tokenizer

CALL = '<tool_call>{"name": "search", "arguments": {"query": "blue lamp"}}</tool_call>'


def test_reasoning_content_and_calls_are_divided():
    said = parse_output(f"<think>look it up</think>\n\nOne moment.{CALL}", OWN)
    assert said == AssistantMessage("One moment.", "look it up", (Call("search", {"query": "blue lamp"}),))
    message = said.to_openai(["call_1"])
    assert message["reasoning_content"] == "look it up"
    assert message["tool_calls"][0]["function"] == {"name": "search", "arguments": '{"query": "blue lamp"}'}


def test_a_call_alone_has_null_content_as_openai_gives_it():
    assert parse_output(CALL, OWN).to_openai(["x"])["content"] is None
    assert parse_output("", OWN).to_openai([])["content"] == ""


def test_unclosed_thinking_is_all_reasoning_and_second_marks_stay_visible():
    assert parse_output("<think>12+5=17", OWN) == AssistantMessage(reasoning="12+5=17")
    said = parse_output("<think></think>8</think>7", OWN)
    assert said == AssistantMessage("8</think>7", malformed=("thinking: a second </think>",))
    said = parse_output("8<think>x</think>7", OWN)
    assert said.content == "8<think>x</think>7" and said.malformed[0] == "thinking: <think> after the answer began"


@given(st.lists(st.sampled_from(["<think>", "</think>", "a", "\n", " ", "<"]), max_size=7).map("".join))
def test_the_parser_and_the_graders_agree_on_what_is_malformed(text):
    found, said = read_thinking(text), parse_output(text, OWN)
    assert (found.problem is not None) == any(problem.startswith("thinking") for problem in said.malformed)
    if found.problem is None:
        assert said.reasoning == (found.reasoning or "").strip("\n")
        assert said.content.strip() == (found.answer or "").strip()


def test_messages_render_back_to_the_text_that_was_generated(tmp_path):
    tokenizer = tiny_tokenizer(tmp_path)
    text = f"<think>t</think>so:{CALL}"
    message = parse_output(text, OWN).to_openai(["c"])
    ids, mask = tokenizer.render_with_mask(as_turns([{"role": "user", "content": "q"}, message]))
    assert tokenizer.decode([token for token, wrote in zip(ids, mask, strict=True) if wrote]) == text + "<|end|>"
    assert recorded(message) == recorded({"content": text}) == parse_output(text, OWN)


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([{"role": "robot", "content": "x"}], "messages[0].role"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content[0]"),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
            "messages[0].tool_calls[0]",
        ),
    ],
)
def test_bad_messages_name_the_key(messages, param):
    with pytest.raises(MessageError) as caught:
        as_turns(messages)
    assert caught.value.param == param
