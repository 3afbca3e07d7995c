"""Calls as bare JSON, the form of Llama 3: `{"name": ..., "parameters": {...}}`, also after `<|python_tag|>`.

A section begins at the tag, or where an answer begins with a brace while tools are offered; it takes the rest of the
answer. Several calls are divided by semicolons. Built-in tools have the form `search.call(query="...")`.
Not covered: code for the interpreter after the tag (it is reported as malformed).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import ClassVar

from loopline.chat.forms.form import Call, CallForm, Malformed, Schemas, load_values, to_call

TAG = "<|python_tag|>"
BUILT_IN = re.compile(r"\s*(\w+)\.call\((.*)\)\s*", re.DOTALL)


class Llama(CallForm):
    """A bare JSON object."""

    name: ClassVar[str] = "llama"
    opens: ClassVar[tuple[str, ...]] = (TAG,)
    opens_first: ClassVar[tuple[str, ...]] = ("{",)
    tags: ClassVar[tuple[str, ...]] = (TAG,)

    def end(self, text: str, final: bool) -> int | None:
        if final:
            return len(text)
        if text.startswith(TAG):
            return None
        # Ordinary JSON is let go as soon as its first key is known.
        key = re.match(r'\{\s*(?:"([^"]*)("?)|([^"\s]))', text)
        if key is None or (not key[3] and not key[2]):
            return None
        return None if key[1] in ("name", "type", "function", "parameters", "arguments", "id") else 0

    def read(self, section: str, tools: Schemas | None) -> list[Call]:
        body = section.removeprefix(TAG)
        tagged = body != section
        values, rest = load_values(body)
        if not values and tagged and (found := BUILT_IN.fullmatch(body)):
            return [_built_in(found[1], found[2])]
        meant = tagged or ('"name"' in body and ('"parameters"' in body or '"arguments"' in body))
        if not meant:
            return []
        if rest or not values:
            raise Malformed(f"{rest[:40]!r} is no call")
        return [to_call(value, "parameters", "arguments") for value in values]

    def write_after(self, words: str, calls: Sequence[Call]) -> str:
        # Bare JSON is a call at the beginning of an answer only.
        return f"{words}\n{TAG}{self.write(calls)}" if words else self.write(calls)

    def write(self, calls: Sequence[Call]) -> str:
        return "; ".join(self.dumps({"name": call.name, "parameters": call.arguments}) for call in calls)


def _built_in(name: str, arguments: str) -> Call:
    try:
        parsed = ast.parse(f"f({arguments})", mode="eval").body
        assert isinstance(parsed, ast.Call)
        if parsed.args:
            raise ValueError("an argument has no name")
        return Call(name, {str(item.arg): ast.literal_eval(item.value) for item in parsed.keywords})
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Malformed(f"the call of {name} cannot be read: {error}") from error
