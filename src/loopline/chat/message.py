"""What an assistant wrote, taken apart; and messages as chat templates take them.

    message = AssistantMessage(content="One moment.", reasoning="look it up", tool_calls=(Call("search", {...}),))
    message.to_openai(call_ids)                # {"role": "assistant", "content": ..., "tool_calls": [...], ...}
    messages = as_turns(request_messages)      # texts joined, arguments as objects, roles by their current names

Raises `MessageError` naming the key at fault, in the form of OpenAI's API. Not covered: images and audio (refused).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loopline.base.errors import UserError
from loopline.chat.forms.form import Call

Message = Mapping[str, Any]
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
ROLES["function"] = "tool"
KEPT = ("tool_call_id", "name")


class MessageError(UserError):
    """A message that no chat template can render; `param` names the key at fault."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message, "correct that message")
        self.param = param


@dataclass(frozen=True)
class AssistantMessage:
    """One answer, taken apart. Text in a form that the parser does not accept stays in `content`, as it was written."""

    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[Call, ...] = ()
    malformed: tuple[str, ...] = ()
    """What is out of form: "thinking: ..." and "tool call: ...", in the order of the text."""

    def to_openai(self, call_ids: Sequence[str] = ()) -> dict[str, Any]:
        """The message in OpenAI's form, with `reasoning_content` as other servers name it."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content or (None if self.tool_calls else "")}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.tool_calls:
            names = call_ids or [f"call_{number}" for number in range(len(self.tool_calls))]
            message["tool_calls"] = [call_entry(call, key) for call, key in zip(self.tool_calls, names, strict=True)]
        return message


def call_entry(call: Call, key: str) -> dict[str, Any]:
    """One `tool_calls` entry."""
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    return {"id": key, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def calls_of(message: Message, where: str = "the message") -> list[Call]:
    """The calls of a message's `tool_calls`, whose arguments may be JSON text or an object."""
    found = []
    for number, entry in enumerate(message.get("tool_calls") or []):
        place = f"{where}.tool_calls[{number}]"
        function = entry.get("function", entry) if isinstance(entry, Mapping) else None
        arguments = function.get("arguments") if isinstance(function, Mapping) else None
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except ValueError:
                arguments = None
        if not isinstance(function, Mapping) or not isinstance(arguments, Mapping) or not function.get("name"):
            raise MessageError(f"{place} must hold function.name and function.arguments as JSON", place)
        found.append(Call(str(function["name"]), dict(arguments)))
    return found


def text_of(content: Any, param: str) -> str:
    """The text of a `content` value: a string, null, or a list of text parts."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise MessageError(f"{param} must be a string or a list of text parts", param)
    pieces = []
    for number, part in enumerate(content):
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise MessageError(f"{param}[{number}]: only text parts are supported", f"{param}[{number}]")
        pieces.append(part["text"])
    return "".join(pieces)


def as_turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages with a text `content`, a known role, calls with arguments as objects, and no keys that are empty."""
    if not messages:
        raise MessageError("messages must hold at least one message", "messages")
    turns = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if str(message.get("role")) not in ROLES:
            raise MessageError(
                f"{where}.role is {message.get('role')!r}: use system, user, assistant or tool", f"{where}.role"
            )
        turn: dict[str, Any] = {"role": ROLES[str(message["role"])]}
        turn["content"] = text_of(message.get("content"), f"{where}.content")
        turn |= {key: message[key] for key in KEPT if message.get(key) is not None}
        if turn["role"] == "assistant":
            if message.get("reasoning_content"):
                turn["reasoning_content"] = text_of(message["reasoning_content"], f"{where}.reasoning_content")
            calls = calls_of(message, where)
            if calls:
                ids = [entry.get("id") for entry in message["tool_calls"]]
                turn["tool_calls"] = [
                    {
                        **({"id": key} if key else {}),
                        "type": "function",
                        "function": {"name": call.name, "arguments": call.arguments},
                    }
                    for key, call in zip(ids, calls, strict=True)
                ]
        turns.append(turn)
    return turns
