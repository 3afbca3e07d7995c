"""Six forms of tool calls: what is written is read back, whole or in pieces; what is out of form stays text."""

import keyword

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopline.base.errors import UserError
from loopline.chat.forms.coder import Coder
from loopline.chat.forms.deepseek import DeepSeek
from loopline.chat.forms.detect import FORMS, detect_form
from loopline.chat.forms.form import Call, schemas
from loopline.chat.forms.gemma import Gemma
from loopline.chat.forms.hermes import Hermes
from loopline.chat.forms.llama import Llama
from loopline.chat.forms.mistral import Mistral
from loopline.chat.message import AssistantMessage
from loopline.chat.parser import OutputParser, parse_output

ALL = {
    **{name: make() for name, make in FORMS.items()},
    "mistral-args": Mistral(True),
    "deepseek-short": DeepSeek(True),
}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SPECIAL = st.sampled_from(
    [
        "</tool_call>",
        "<tool_call>",
        '"',
        "\\",
        "```",
        "\n",
        "[TOOL_CALLS]",
        "<｜tool▁calls▁end｜>",
        "{",
        "<|python_tag|>",
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats(-9, 9) | TEXT | SPECIAL,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=5,
)
NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True).filter(lambda name: not keyword.iskeyword(name))
CALLS = st.lists(st.builds(Call, NAMES, st.dictionaries(NAMES, VALUES, max_size=3)), min_size=1, max_size=3)


def tools_of(calls):
    """Tools whose schemas say of each argument what it is."""
    kinds = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}
    return [
        {
            "name": call.name,
            "parameters": {
                "properties": {key: {"type": kinds.get(type(v), "null")} for key, v in call.arguments.items()}
            },
        }
        for call in calls
    ]


def in_pieces(text, form, tools, size):
    parser = OutputParser(form, tools)
    for start in range(0, len(text), size):
        parser.feed(text[start : start + size])
    parser.close()
    return parser.message


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=150)
@given(calls=CALLS, size=st.integers(1, 9), words=st.sampled_from(["", "One moment."]))
def test_what_is_written_is_read_back(name, calls, size, words):
    form = ALL[name]
    calls = list({call.name: call for call in calls}.values())
    try:
        text = form.write(calls)
    except UserError:
        assert isinstance(form, Coder)
        return
    tools = schemas(tools_of(calls))
    if words and not isinstance(form, Llama):
        text = f"{words}\n{text}"
    else:
        words = ""
    found = parse_output(text, form, tools)
    assert found == AssistantMessage(words, "", tuple(calls))
    assert in_pieces(text, form, tools, size) == found


REAL = {
    "hermes": '<tool_call>\n{"name": "search", "arguments": {"query": "lamp"}}\n</tool_call>',
    "qwen3-coder": "<tool_call>\n<function=search>\n<parameter=query>\nlamp\n</parameter>\n</function>\n</tool_call>",
    "llama": '<|python_tag|>{"type": "function", "name": "search", "parameters": {"query": "lamp"}}',
    "mistral": '[TOOL_CALLS] [{"name": "search", "arguments": {"query": "lamp"}, "id": "abcdefghi"}]',
    "mistral-args": '[TOOL_CALLS]search[CALL_ID]abcdefghi[ARGS]{"query": "lamp"}',
    "deepseek": (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>search\n```json\n"
        '{"query": "lamp"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
    ),
    "deepseek-short": (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>search<｜tool▁sep｜>"
        '{"query": "lamp"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
    ),
    "gemma": '```tool_code\nprint(search(query="lamp"))\n```',
}


@pytest.mark.parametrize("name", REAL)
def test_what_the_families_write_is_read(name):
    tools = schemas([{"name": "search", "parameters": {"properties": {"query": {"type": "string"}}}}])
    assert parse_output(REAL[name], ALL[name], tools) == AssistantMessage(
        tool_calls=(Call("search", {"query": "lamp"}),)
    )
    thought = parse_output(f"<think>\nlook\n</think>\n\n{REAL[name]}", ALL[name], tools)
    assert thought == AssistantMessage("", "look", (Call("search", {"query": "lamp"}),))


def test_further_ways_of_the_families():
    tools = schemas([{"name": "search", "parameters": {"properties": {"query": {"type": "string"}, "k": {}}}}])
    lamp = Call("search", {"query": "lamp"})
    for form, text in (
        (Llama(), '{"name": "search", "parameters": {"query": "lamp"}}'),
        (Llama(), '<|python_tag|>search.call(query="lamp")'),
        (Gemma(), '```tool_code\n[search("lamp")]\n```'),
        (Gemma(), '```json\n{"name": "search", "parameters": {"query": "lamp"}}\n```'),
        (Coder(), "<function=search>\n<parameter=query>\nlamp\n</parameter>\n</function>"),
        (DeepSeek(), REAL["deepseek"].removesuffix("<｜tool▁calls▁end｜>")),
    ):
        assert parse_output(text, form, tools).tool_calls == (lamp,), text
    two = parse_output('{"name": "search", "parameters": {}}; {"name": "b", "parameters": {"k": 1}}', Llama(), tools)
    assert two.tool_calls == (Call("search", {}), Call("b", {"k": 1}))
    assert parse_output('```tool_code\nsearch(query="a", k=3)\n```', Gemma(), tools).tool_calls[0].arguments["k"] == 3


BROKEN = {
    "hermes": ['<tool_call>{"name": "search"}</tool_call>', "<tool_call>{bad</tool_call>", '<tool_call>{"name": "a'],
    "qwen3-coder": ["<tool_call>search</tool_call>", "<tool_call><function=a>x</function></tool_call>", "<function=a>"],
    "llama": [
        '<|python_tag|>print("hi")',
        '{"name": "search", "parameters": {"query": ',
        '{"name": "a", "parameters": 3}',
    ],
    "mistral": ["[TOOL_CALLS][{]", "[TOOL_CALLS]", '[TOOL_CALLS][{"name": "a", "arguments": {}}] so'],
    "deepseek": ["<｜tool▁calls▁begin｜>search<｜tool▁calls▁end｜>", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>a"],
    "gemma": ["```tool_code\nx = 1\n```", "```tool_code\nsearch(open('a'))\n```", "```tool_code\nsearch("],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in BROKEN.items() for text in texts])
def test_a_malformed_call_stays_visible_text_and_is_reported(name, text):
    found = parse_output(text, ALL[name], {})
    assert found.content == text and not found.tool_calls
    assert len(found.malformed) == 1 and found.malformed[0].startswith("tool call: ")
    off = parse_output(text, ALL[name], tools=False)
    assert off == AssistantMessage(text)


@pytest.mark.parametrize(
    "text", ['{"a": 1}', "{}", "{ so", '{"name": "Ann"}', "```json\n{}\n```", "```json", "```py\n1\n```"]
)
def test_ordinary_json_is_an_answer_and_not_malformed(text):
    for form in (Llama(), Gemma()):
        assert parse_output(text, form, {}) == AssistantMessage(text)


PIECES = st.lists(
    st.sampled_from(
        [
            "<think>",
            "</think>",
            *REAL.values(),
            "<tool_call>{bad</tool_call>",
            "<tool_call>",
            "</tool",
            "\n",
            "12",
            "é",
            "<",
        ]
        + ['{"', "{", "[TOOL", '{"name": "x", "parameters": {}}', "```tool_code\n", "```", "<｜tool▁calls▁end｜>", '"']
    ),
    max_size=8,
).map("".join)


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=150)
@given(text=PIECES, cuts=st.lists(st.integers(0, 300), max_size=6), before=st.sampled_from(["", "<think>"]))
def test_where_the_pieces_are_cut_does_not_change_the_result(name, text, cuts, before):
    borders = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    parser = OutputParser(ALL[name], {}, before=before)
    events = [event for a, b in zip(borders, borders[1:], strict=False) for event in parser.feed(text[a:b])]
    events += parser.close()
    whole = parse_output(text, ALL[name], {}, before=before)
    assert parser.message == whole
    for kind, part in (("content", whole.content), ("reasoning", whole.reasoning)):
        assert "".join(str(value) for what, value in events if what == kind) == part
    assert [value for what, value in events if what == "tool_call"] == list(whole.tool_calls)


def test_forms_are_detected_from_templates_and_tokens():
    assert isinstance(detect_form("... <tool_call>\n{...", ()), Hermes)
    assert isinstance(detect_form("<tool_call><function=", ()), Coder)
    assert isinstance(detect_form('{{ "[TOOL_CALLS][" }}', ()), Mistral)
    assert detect_form("[TOOL_CALLS]x[ARGS]", ()).args
    assert isinstance(detect_form("<｜User｜>", ["<｜tool▁calls▁begin｜>"]), DeepSeek)
    assert isinstance(detect_form("<|start_header_id|>", ["<|python_tag|>"]), Llama)
    assert isinstance(detect_form("<start_of_turn>", ()), Gemma)
    assert isinstance(detect_form(None, ()), Hermes)
