"""Calls as nested tags, the form of Qwen3-Coder: `<tool_call><function=NAME><parameter=KEY>value</parameter>...`.

Strings are written as they are, other values as JSON, so the tool's schema decides what a value is; without one, what
reads as JSON that is no string is taken as that. Not covered: values that hold the form's closing tags (refused on
writing).
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from loopline.base.errors import UserError
from loopline.chat.forms.form import Call, CallForm, Malformed, Schemas, dumps, plain_name

OPEN, CLOSE = "<tool_call>", "</tool_call>"
FUNCTION, END_FUNCTION, END_PARAMETER = "<function=", "</function>", "</parameter>"
BODY = re.compile(r"<function=([^>\n]+)>(.*)</function>", re.DOTALL)
PARAMETER = re.compile(r"\s*<parameter=([^>\n]+)>(.*?)</parameter>", re.DOTALL)


class Coder(CallForm):
    """Nested tags."""

    name: ClassVar[str] = "qwen3-coder"
    opens: ClassVar[tuple[str, ...]] = (OPEN, FUNCTION)
    tags: ClassVar[tuple[str, ...]] = (CLOSE, END_FUNCTION, END_PARAMETER)
    strays: ClassVar[tuple[str, ...]] = (CLOSE, END_FUNCTION)

    def end(self, text: str, final: bool) -> int | None:
        close = CLOSE if text.startswith(OPEN) else END_FUNCTION
        at = text.find(close)
        return at + len(close) if at >= 0 else len(text) if final else None

    def read(self, section: str, tools: Schemas | None) -> list[Call]:
        body = section.removeprefix(OPEN).removesuffix(CLOSE).strip()
        found = BODY.fullmatch(body)
        if found is None or section.startswith(OPEN) != section.endswith(CLOSE):
            raise Malformed(f"not {FUNCTION}NAME>...{END_FUNCTION}")
        name, rest, arguments = found[1], found[2], dict[str, Any]()
        properties = ((tools or {}).get(name) or {}).get("properties", {})
        while parameter := PARAMETER.match(rest):
            key, value = parameter[1], parameter[2].removeprefix("\n").removesuffix("\n")
            arguments[key] = _value(value, properties.get(key) if tools is not None else None)
            rest = rest[parameter.end() :]
        if rest.strip():
            raise Malformed(f"{rest.strip()[:40]!r} is no parameter")
        return [Call(name, arguments)]

    def write(self, calls: Sequence[Call]) -> str:
        return "\n".join(self._write(call) for call in calls)

    def _write(self, call: Call) -> str:
        lines = [OPEN, f"{FUNCTION}{plain_name(call, self.name)}>"]
        for key, value in call.arguments.items():
            text = value if isinstance(value, str) else dumps(value)
            if any(tag in text for tag in self.tags) or not key or set(key) & set(">\n"):
                raise UserError(
                    f"The {self.name} form cannot write the argument {key!r} of {call.name}",
                    "leave its closing tags out of the value",
                )
            lines += [f"<parameter={key}>", text, END_PARAMETER]
        return "\n".join([*lines, END_FUNCTION, CLOSE])


def _value(text: str, schema: Mapping[str, Any] | None) -> Any:
    """The value of a parameter: its text where the schema says string, else what the text reads as."""
    if schema is not None and schema.get("type", "string") == "string":
        return text
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        # Without a schema a quoted text keeps its quotes: strings are written as they are.
        return text if schema is None and isinstance(value, str) else value
    return text
