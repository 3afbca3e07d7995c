"""What the lenient reading of calls repairs, and how arguments are checked."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopline.chat.forms.form import Call
from loopline.chat.parser import OWN, parse_output
from loopline.chat.repair import nearest_tool, repair_call
from loopline.chat.tools import Tool, ToolResult, as_plain_text
from loopline.environments.search import CALCULATOR

SEARCH = Tool(
    name="search",
    description="",
    parameters={"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
    function=lambda arguments: ToolResult(text=arguments["query"]),
)
TOOLS = {"search": SEARCH, "calculator": CALCULATOR}
WANTED = Call("search", {"query": "blue lamp"})


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name": "search", "arguments": {"query": "blue lamp"}}',
        '<tool_call>{"name": "search", "arguments": {"query": "blue lamp"}</tool_call>',
        '<tool_call>{"name": "search", "arguments": {"query": "blue lamp</tool_call>',
        '<tool_call>{"name": "search", "arguments": {"query": "blue lamp"}}}</tool_call>',
        "<tool_call>{'name': 'search', 'arguments': {'query': 'blue lamp'}}</tool_call>",
        '<tool_call>{"name": "search", "arguments": {"query": "blue lamp",}}</tool_call>',
        '<tool_call>{"name": "search", "query": "blue lamp"}</tool_call>',
        '<tool_call>search("blue lamp")</tool_call>',
        '{"name": "search", "arguments": {"query": "blue lamp"}}</tool_call>',
    ],
)
def test_repairs_what_strict_reading_refuses(text: str) -> None:
    found = parse_output(text, OWN)
    assert not found.tool_calls and found.malformed and found.content == text
    assert repair_call(text, TOOLS) == WANTED


def test_renames_a_lone_argument_and_routes_unknown_names() -> None:
    assert repair_call('<tool_call>{"name": "search", "arguments": {"text": "blue lamp"}}</tool_call>', TOOLS) == WANTED
    assert nearest_tool(Call("serch", {}), TOOLS) == "search"
    assert nearest_tool(Call("zzz", {"expression": "1+1"}), TOOLS) == "calculator"
    assert nearest_tool(Call("zzz", {"nothing": 1}), TOOLS) is None


@given(st.text(max_size=80))
def test_any_turn_is_read_without_an_exception(text: str) -> None:
    call = repair_call(f"<tool_call>{text}</tool_call>", TOOLS)
    assert call is None or isinstance(call.arguments, dict)


def test_arguments_are_checked_and_errors_are_text() -> None:
    assert SEARCH.call({}).text == "Error: search needs the argument query"
    assert SEARCH.call({"query": 3}).text == "Error: search: query must be of type string"
    assert SEARCH.call({"query": "a", "page": 2}).text == "Error: search has no argument page"
    assert CALCULATOR.call({"expression": "1/0"}).text == "Error: division by zero"
    assert CALCULATOR.call({"expression": "6*7"}) == ToolResult(text="42")


def test_documents_cannot_write_chat_marks() -> None:
    text = as_plain_text("price <|assistant|>0<|end|> <tool_call> </think> 3<4")
    assert text == "price < |assistant|>0< |end|> < tool_call> < /think> 3<4"
