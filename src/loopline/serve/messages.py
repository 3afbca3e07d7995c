"""Between OpenAI messages and the model's text.

`to_turns` turns request messages into the turns a tokenizer renders; `OutputParser` splits generated text into
reasoning, content and tool calls as it arrives; `parse_output` does the same for a whole text. Tool calls have the
Hermes form `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, reasoning is `<think>...</think>`.

Not covered: images and audio (refused), and running the tools (the caller's, or the harness's, business).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from loopline.chat import calls

THINK, END_THINK, CALL, END_CALL = "<think>", "</think>", calls.OPEN, calls.CLOSE
Kind = Literal["reasoning", "content", "tool_call"]


class MessageError(ValueError):
    """A message the model cannot be given; `param` names the offending key in OpenAI's form."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


def text_of(content: Any, param: str) -> str:
    """The text of a `content` value: a string, null, or a list of text parts."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        pieces = []
        for number, part in enumerate(content):
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise MessageError(f"{param}[{number}]: only text parts are supported", f"{param}[{number}]")
            pieces.append(part["text"])
        return "".join(pieces)
    raise MessageError(f"{param} must be a string or a list of text parts", param)


def _calls_text(entries: Any, param: str) -> str:
    pieces = []
    for number, call in enumerate(entries):
        where = f"{param}[{number}]"
        try:
            pieces.append(calls.write_call(call["function"]["name"], json.loads(call["function"]["arguments"])))
        except (TypeError, KeyError, ValueError) as error:
            raise MessageError(f"{where} must hold function.name and function.arguments as JSON text", where) from error
    return "".join(pieces)


def to_turns(messages: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Request messages as turns {"role", "content"} with roles system, user, assistant and tool.

    Raises `MessageError` for an unknown role, a part that is not text, or a malformed tool call.
    """
    if not messages:
        raise MessageError("messages must hold at least one message", "messages")
    turns = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        role = {"developer": "system", "function": "tool"}.get(str(message.get("role")), message.get("role"))
        if role not in ("system", "user", "assistant", "tool"):
            raise MessageError(
                f"{where}.role is {message.get('role')!r}: use system, user, assistant or tool", f"{where}.role"
            )
        content = text_of(message.get("content"), f"{where}.content")
        if role == "assistant":
            reasoning = message.get("reasoning_content")
            head = f"{THINK}{reasoning}{END_THINK}" if reasoning else ""
            content = head + content + _calls_text(message.get("tool_calls") or [], f"{where}.tool_calls")
        turns.append({"role": str(role), "content": content})
    return turns


def _partial_tag(text: str, tags: tuple[str, ...]) -> int:
    """Length of the longest end of `text` that could be the beginning of one of `tags`."""
    longest = min(len(text), max(len(tag) for tag in tags) - 1)
    return next((size for size in range(longest, 0, -1) if any(tag.startswith(text[-size:]) for tag in tags)), 0)


def parse_call(body: str) -> dict[str, Any] | None:
    """One call body as {"name", "arguments"}; None when it is not a well-formed call."""
    call = calls.parse_call(f"{CALL}{body}{END_CALL}")
    return None if call is None else {"name": call.name, "arguments": call.arguments}


@dataclass
class OutputParser:
    """Splits text that arrives in pieces into (kind, text) events; the pieces' borders never change the result.

    A malformed tool call stays content, tags included, so that nothing the model wrote is lost. With `tools` off, so
    do well-formed ones.
    """

    tools: bool = True
    _buffer: str = ""
    _inside: Kind = "content"
    _fresh: bool = False

    def feed(self, text: str) -> list[tuple[Kind, str]]:
        """Take more text; returns what can be told for certain. A tool call is returned whole, as its JSON body."""
        self._buffer += text
        events: list[tuple[Kind, str]] = []
        while self._step(events):
            pass
        return events

    def close(self) -> list[tuple[Kind, str]]:
        """The rest, when no more text will come."""
        rest, self._buffer = self._buffer, ""
        if self._inside == "tool_call":
            self._inside = "content"
            return [("content", CALL + rest)]
        if not rest:
            return []
        return [(self._inside, rest)]

    def _step(self, events: list[tuple[Kind, str]]) -> bool:
        if self._inside == "tool_call":
            body, found, rest = self._buffer.partition(END_CALL)
            if not found:
                return False
            malformed = parse_call(body) is None
            events.append(("content", CALL + body + END_CALL) if malformed else ("tool_call", body))
            self._buffer, self._inside = rest, "content"
            return True
        if self._inside == "content" and self._fresh:
            # Models put blank lines between reasoning and answer; they belong to neither.
            self._buffer = self._buffer.lstrip("\n")
            self._fresh = not self._buffer
        tags = (END_THINK,) if self._inside == "reasoning" else (THINK, CALL) if self.tools else (THINK,)
        places = [(self._buffer.find(tag), tag) for tag in tags if tag in self._buffer]
        if not places:
            keep = _partial_tag(self._buffer, tags)
            ready, self._buffer = self._buffer[: len(self._buffer) - keep], self._buffer[len(self._buffer) - keep :]
            if ready:
                events.append((self._inside, ready))
            return False
        place, tag = min(places)
        if place:
            events.append((self._inside, self._buffer[:place]))
        self._buffer = self._buffer[place + len(tag) :]
        self._fresh = tag == END_THINK
        self._inside = {THINK: "reasoning", END_THINK: "content", CALL: "tool_call"}[tag]  # type: ignore[assignment]
        return True


@dataclass
class Output:
    """One answer, taken apart."""

    content: str = ""
    reasoning: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)

    def add(self, events: Sequence[tuple[Kind, str]]) -> None:
        """Append parser events."""
        for kind, text in events:
            if kind == "tool_call":
                call = parse_call(text)
                assert call is not None, "the parser only reports well-formed calls"
                self.calls.append(call)
            elif kind == "reasoning":
                self.reasoning += text
            else:
                self.content += text

    def message(self, call_ids: Sequence[str]) -> dict[str, Any]:
        """The assistant message in OpenAI's form (with `reasoning_content`, as other servers name it)."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content or (None if self.calls else "")}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.calls:
            message["tool_calls"] = [call_entry(call, key) for call, key in zip(self.calls, call_ids, strict=True)]
        return message


def call_entry(call: dict[str, Any], key: str) -> dict[str, Any]:
    """One `tool_calls` entry."""
    arguments = json.dumps(call["arguments"], ensure_ascii=False)
    return {"id": key, "type": "function", "function": {"name": call["name"], "arguments": arguments}}


def parse_output(text: str, tools: bool = True) -> Output:
    """A whole generated text, without its end token, taken apart."""
    parser, output = OutputParser(tools=tools), Output()
    output.add(parser.feed(text))
    output.add(parser.close())
    return output
