"""Calls as a JSON list after a token, the form of Mistral: `[TOOL_CALLS][{"name": ..., "arguments": {...}}]`.

Newer models write `[TOOL_CALLS]NAME[ARGS]{...}` for each call (`args=True` on writing; both are read). A section takes
the rest of the answer. Not covered: ids of calls, which belong to messages.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

from loopline.chat.forms.form import Call, CallForm, Malformed, Schemas, load_call, load_values, plain_name, to_call

OPEN, ARGS = "[TOOL_CALLS]", "[ARGS]"
NAMED = re.compile(r"\s*([\w.-]+)\s*(?:\[CALL_ID\]\s*\w+\s*)?\[ARGS\](.*)", re.DOTALL)


class Mistral(CallForm):
    """A JSON list after a token."""

    name: ClassVar[str] = "mistral"
    opens: ClassVar[tuple[str, ...]] = (OPEN,)
    tags: ClassVar[tuple[str, ...]] = (OPEN, ARGS, "[CALL_ID]")

    def __init__(self, args: bool = False) -> None:
        self.args = args

    def end(self, text: str, final: bool) -> int | None:
        return len(text) if final else None

    def read(self, section: str, tools: Schemas | None) -> list[Call]:
        body = section.removeprefix(OPEN)
        if ARGS in body:
            found = [NAMED.fullmatch(part) for part in body.split(OPEN)]
            if any(part is None for part in found):
                raise Malformed(f"not NAME{ARGS}{{...}}")
            return [
                Call(part[1], load_call(f'{{"name": "", "arguments": {part[2]}}}', "arguments").arguments)
                for part in found
                if part is not None
            ]
        values, rest = load_values(body)
        if rest.strip() or len(values) != 1:
            raise Malformed("not one JSON list")
        listed = values[0] if isinstance(values[0], list) else [values[0]]
        if not listed:
            raise Malformed("an empty list of calls")
        return [to_call(value, "arguments", "parameters") for value in listed]

    def write(self, calls: Sequence[Call]) -> str:
        if self.args:
            return "".join(f"{OPEN}{plain_name(call, self.name)}{ARGS}{self.dumps(call.arguments)}" for call in calls)
        return OPEN + self.dumps([{"name": call.name, "arguments": call.arguments} for call in calls])
