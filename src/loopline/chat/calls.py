"""Tool calls as text: reading them strictly, reading them leniently, writing them.

    parse_call('<tool_call>{"name": "search", "arguments": {"query": "lamp"}}</tool_call>')   # Call("search", {...})

The form is that of Hermes and Qwen models. A turn holds one call; text around it is allowed. Strict reading takes
valid JSON with `name` and `arguments` only; `repair_call` also mends what small policies get wrong. Not covered:
several calls in one turn (the first is run).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from loopline.chat.tools import Tool

OPEN, CLOSE = "<tool_call>", "</tool_call>"
QUOTED = re.compile(r"""["']([^"']*)["']""")


@dataclass(frozen=True)
class Call:
    """One tool call."""

    name: str
    arguments: dict[str, Any]

    @property
    def key(self) -> str:
        """Equal for calls that ask the same."""
        return json.dumps([self.name, self.arguments], sort_keys=True)


def asks_tool(text: str) -> bool:
    """Whether a turn means to call a tool, however badly."""
    return OPEN in text or CLOSE in text


def write_call(name: str, arguments: Mapping[str, Any]) -> str:
    """The text of a call, in the form policies are trained on."""
    return f"{OPEN}{json.dumps({'name': name, 'arguments': dict(arguments)}, ensure_ascii=False)}{CLOSE}"


def parse_call(text: str) -> Call | None:
    """The first call of a turn, or None when it is not exactly in form."""
    start = text.find(OPEN)
    end = text.find(CLOSE, start)
    if start < 0 or end < 0:
        return None
    return _call_of(text[start + len(OPEN) : end])


def repair_call(text: str, tools: Mapping[str, Tool]) -> Call | None:
    """The call a turn most likely meant, or None.

    Mends in this order: a missing end mark, unclosed quotes and braces, single quotes and trailing commas, a call
    whose only readable parts are a tool's name and one quoted value, and the name of a lone argument.
    """
    start = text.find(OPEN)
    body = text[start + len(OPEN) :] if start >= 0 else text
    body = body.split(CLOSE)[0].split("<|end|>")[0].strip()
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
    except (json.JSONDecodeError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments")
    return Call(value["name"], arguments) if isinstance(arguments, dict) else None


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
    """`call` with a lone, wrongly named argument given the name of the tool's lone required one."""
    required = tools[call.name].parameters.get("required", []) if call.name in tools else []
    if len(required) == 1 and len(call.arguments) == 1 and required[0] not in call.arguments:
        return Call(call.name, {required[0]: next(iter(call.arguments.values()))})
    return call
