"""Text to messages and back: borders between pieces never matter, nothing the model wrote is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopline.serve.messages import MessageError, Output, OutputParser, parse_output, to_turns

CALL = '<tool_call>{"name": "search", "arguments": {"query": "blue lamp"}}</tool_call>'
PIECES = st.lists(
    st.sampled_from(
        ["<think>", "</think>", CALL, "<tool_call>{bad</tool_call>", "<tool_call>", "</tool", "\n", "12+5", "é", "<"]
    ),
    max_size=8,
).map("".join)


def test_reasoning_content_and_calls_are_told_apart():
    output = parse_output(f"<think>look it up</think>\n\nOne moment.{CALL}")
    assert (output.reasoning, output.content) == ("look it up", "One moment.")
    assert output.calls == [{"name": "search", "arguments": {"query": "blue lamp"}}]
    message = output.message(["call_1"])
    assert message["reasoning_content"] == "look it up"
    assert message["tool_calls"][0]["function"] == {"name": "search", "arguments": '{"query": "blue lamp"}'}


def test_a_call_alone_has_null_content_as_openai_gives_it():
    assert parse_output(CALL).message(["x"])["content"] is None
    assert parse_output("").message([])["content"] == ""


def test_a_malformed_call_and_calls_without_tools_stay_text():
    bad = '<tool_call>{"name": "search", "arguments": </tool_call>'
    assert parse_output(bad) == Output(content=bad)
    assert parse_output(CALL, tools=False) == Output(content=CALL)
    unclosed = CALL.removesuffix("</tool_call>")
    assert parse_output(unclosed) == Output(content=unclosed)


def test_unclosed_thinking_is_all_reasoning():
    assert parse_output("<think>12+5=17") == Output(reasoning="12+5=17")


@given(PIECES, st.lists(st.integers(0, 200), max_size=6))
def test_where_the_pieces_are_cut_does_not_change_the_result(text, cuts):
    borders = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    parser, output = OutputParser(), Output()
    for start, end in zip(borders, borders[1:], strict=False):
        output.add(parser.feed(text[start:end]))
    output.add(parser.close())
    assert output == parse_output(text)


def test_turns_rebuild_the_text_that_was_generated():
    text = f"<think>t</think>{CALL}"
    message = parse_output(text).message(["c"])
    assert to_turns([{"role": "user", "content": "q"}, message])[1] == {"role": "assistant", "content": text}


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
        to_turns(messages)
    assert caught.value.param == param
