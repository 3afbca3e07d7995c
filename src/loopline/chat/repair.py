"""Tool calls that are not quite in form: which call a turn most likely meant.

    call = repair_call(text, environment.tools)       # Call("search", {"query": "blue lamp"}), or None
    nearest_tool(Call("serch", {}), environment.tools)        # "search"

For policies that write JSON calls, whatever tags they put around them. Not covered: calls in form (see `chat.parser`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from difflib import get_close_matches

from loopline.chat.forms import coder, deepseek, gemma, hermes, llama, mistral
from loopline.chat.forms.form import Call, Malformed, to_call
from loopline.chat.tools import Tool

QUOTED = re.compile(r"""["']([^"']*)["']""")
OPENS = (hermes.OPEN, mistral.OPEN, llama.TAG, deepseek.SEPARATOR, gemma.CODE, coder.FUNCTION)
CLOSES = (hermes.CLOSE, deepseek.END, gemma.CLOSE, coder.END_FUNCTION)


def repair_call(text: str, tools: Mapping[str, Tool]) -> Call | None:
    """The call a turn most likely meant, or None.

    Fixes in this order: a missing closing tag, unclosed quotes and braces, single quotes and trailing commas, a call
    whose only readable parts are a tool's name and one quoted value, and the name of a lone argument.
    """
    start = min(((at, tag) for tag in OPENS if (at := text.find(tag)) >= 0), default=None)
    body = text if start is None else text[start[0] + len(start[1]) :]
    for tag in CLOSES:
        body = body.split(tag)[0]
    body = body.strip()
    candidates = [body, _closed(body), _closed(re.sub(r",\s*([}\]])", r"\1", body.replace("'", '"')))]
    call = next((found for found in map(_call_of, candidates) if found is not None), None)
    if call is None:
        call = _scavenged(body, tools)
    return None if call is None else _renamed(call, tools)


def nearest_tool(call: Call, tools: Mapping[str, Tool]) -> str | None:
    """The tool an unknown name most likely meant: by spelling, else the only one whose arguments fit."""
    close = get_close_matches(call.name, sorted(tools), n=1, cutoff=0.6)
    if close:
        return close[0]
    fitting = [name for name in sorted(tools) if tools[name].problem(call.arguments) is None]
    return fitting[0] if len(fitting) == 1 else None


def _call_of(body: str) -> Call | None:
    try:
        value = json.loads(body)
        return to_call(value[0] if isinstance(value, list) and value else value, "arguments", "parameters")
    except (ValueError, RecursionError, Malformed):
        return None


def _closed(body: str) -> str:
    """`body` with quotes and brackets that are still open closed in order."""
    stack: list[str] = []
    quoted = escaped = False
    kept = []
    for character in body:
        if quoted:
            quoted = escaped or character != '"'
            escaped = character == "\\" and not escaped
        elif character == '"':
            quoted = True
        elif character in "{[":
            stack.append("}" if character == "{" else "]")
        elif character in "}]":
            if not stack:
                continue
            stack.pop()
        kept.append(character)
    return "".join(kept) + ('"' if quoted else "") + "".join(reversed(stack))


def _scavenged(body: str, tools: Mapping[str, Tool]) -> Call | None:
    """A call from a tool's name and the last quoted text that is not a name."""
    known = {"name", "arguments", *tools, *(key for tool in tools.values() for key in tool.parameters["properties"])}
    name = next((name for name in sorted(tools) if name in body), None)
    values = [value for value in QUOTED.findall(_closed(body)) if value.strip(" :,{}") and value not in known]
    if name is None or not values:
        return None
    return Call(name, {tools[name].parameters["required"][0]: values[-1]})


def _renamed(call: Call, tools: Mapping[str, Tool]) -> Call:
    """`call` with a lone, wrongly named argument renamed to the tool's lone required one."""
    required = tools[call.name].parameters.get("required", []) if call.name in tools else []
    if len(required) == 1 and len(call.arguments) == 1 and required[0] not in call.arguments:
        return Call(call.name, {required[0]: next(iter(call.arguments.values()))})
    return call
