"""Calls as JSON between tags, the form of Hermes and Qwen: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`.

It is also the form of our own chat format. One section holds one call. Not covered: what small models get wrong (see
`chat.repair`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from loopline.chat.forms.form import Call, CallForm, Malformed, Schemas, load_call

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class Hermes(CallForm):
    """JSON between tags."""

    name: ClassVar[str] = "hermes"
    opens: ClassVar[tuple[str, ...]] = (OPEN,)
    tags: ClassVar[tuple[str, ...]] = (OPEN, CLOSE)
    strays: ClassVar[tuple[str, ...]] = (CLOSE,)

    def end(self, text: str, final: bool) -> int | None:
        # A closing tag inside a string belongs to an argument; the first one counts when no later one makes sense.
        first = at = text.find(CLOSE)
        while at >= 0:
            if not _in_string(text[len(OPEN) : at]):
                return (at if _reads(text[len(OPEN) : at]) else first) + len(CLOSE)
            at = text.find(CLOSE, at + 1)
        if not final:
            return None
        return len(text) if first < 0 else first + len(CLOSE)

    def read(self, section: str, tools: Schemas | None) -> list[Call]:
        if not section.endswith(CLOSE):
            raise Malformed(f"no {CLOSE}")
        return [load_call(section[len(OPEN) : -len(CLOSE)], "arguments")]

    def write(self, calls: Sequence[Call]) -> str:
        bodies = [self.dumps({"name": call.name, "arguments": call.arguments}) for call in calls]
        return "".join(f"{OPEN}{body}{CLOSE}" for body in bodies)


def _reads(body: str) -> bool:
    try:
        load_call(body, "arguments")
    except Malformed:
        return False
    return True


def _in_string(body: str) -> bool:
    """Whether JSON text ends inside a string."""
    inside = escaped = False
    for character in body:
        if escaped:
            escaped = False
        elif inside and character == "\\":
            escaped = True
        elif character == '"':
            inside = not inside
    return inside
