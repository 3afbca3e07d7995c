"""Cells of a data file as chat messages.

A prompt or a completion may be plain text, one message or a list of messages, in OpenAI's form ({"role", "content"}) or
ShareGPT's ({"from", "value"}); a list of messages may be written as JSON text, the only way a CSV file can hold one.
`split_transcript` reads the "\\n\\nHuman: ... \\n\\nAssistant: ..." transcripts of HH-RLHF (Bai et al. 2022,
arXiv:2204.05862). Not covered: images and other parts that are not text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from loopline.base.errors import UserError
from loopline.tasks.files import loads
from loopline.tasks.rows import Message

ROLES = ("system", "user", "assistant", "tool")
ALIASES = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant", "function": "tool"}
KEPT = ("tool_calls", "tool_call_id", "name", "reasoning_content")
"""Further keys of a message that chat templates read."""
TURN = re.compile(r"\n\n(Human|Assistant):[ ]?")


def to_message(value: Any, place: str) -> Message:
    """One message. Raises `UserError` naming `place` for anything else."""
    if not isinstance(value, dict):
        raise UserError(f"{place} holds {value!r:.60} instead of a message", 'write {"role": "user", "content": "..."}')
    role = value.get("role", value.get("from"))
    role = ALIASES.get(str(role).lower(), role)
    if role not in ROLES:
        raise UserError(f"{place}: a message has the role {role!r}", f"use one of {', '.join(ROLES)}")
    content = value.get("content", value.get("value"))
    if isinstance(content, list):
        content = _joined(content, place)
    if content is None and value.get("tool_calls"):
        content = ""
    if not isinstance(content, str):
        raise UserError(f"{place}: the content of a message is {content!r:.60}", "write it as text")
    message = {"role": role, "content": content, **{key: value[key] for key in KEPT if value.get(key) is not None}}
    if value.get("weight") is not None:
        if role != "assistant" or value["weight"] not in (0, 1):
            raise UserError(
                f"{place}: a turn of the {role} has the weight {value['weight']!r}",
                "give turns of the assistant the weight 0 (no loss) or 1",
            )
        message["weight"] = int(value["weight"])
    return message


def _joined(parts: Sequence[Any], place: str) -> str:
    """The text of content given in parts."""
    texts = []
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise UserError(f"{place}: a part of a message is not text ({part!r:.60})", "leave such rows out")
        texts.append(part["text"])
    return "".join(texts)


def listed(text: str) -> list[Any] | None:
    """The messages that a text holds as JSON; None for any other text, JSON or not."""
    if not text.lstrip().startswith("[") or '"' not in text:
        return None
    try:
        value = loads(text)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(value, list) and value and all(isinstance(item, dict) for item in value)
    return value if whole and all("role" in item or "from" in item for item in value) else None


def to_messages(value: Any, role: str, place: str) -> list[Message]:
    """A cell as messages; plain text becomes one message of `role`."""
    if isinstance(value, str):
        value = listed(value) or [{"role": role, "content": value}]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return [{"role": role, "content": str(value)}]
    if isinstance(value, dict):
        value = value.get("messages", [value])
    if not isinstance(value, list) or not value:
        raise UserError(f"{place} holds {value!r:.60}", "write text, or a list of messages")
    return [to_message(item, place) for item in value]


def is_empty(messages: Sequence[Message]) -> bool:
    """Whether an assistant turn among them says nothing and calls nothing."""
    return any(
        item["role"] == "assistant" and not item["content"].strip() and not item.get("tool_calls") for item in messages
    )


def split_transcript(text: str) -> list[Message] | None:
    """The turns of an HH-RLHF transcript; None when the text is not one."""
    pieces = TURN.split("\n\n" + text.lstrip())
    if len(pieces) < 3 or pieces[0].strip() or pieces[1] != "Human":
        return None
    names = {"Human": "user", "Assistant": "assistant"}
    turns = zip(pieces[1::2], pieces[2::2], strict=True)
    return [{"role": names[who], "content": said.strip()} for who, said in turns]


def shared_prompt(chosen: Sequence[Message], rejected: Sequence[Message]) -> int | None:
    """How many leading messages two conversations share before their last turns differ; None when they differ earlier.

    Both must end with an assistant's turn.
    """
    shared = 0
    for ours, theirs in zip(chosen, rejected, strict=False):
        if ours != theirs:
            break
        shared += 1
    # Equal conversations share all but their last turn.
    shared = min(shared, len(chosen) - 1, len(rejected) - 1)
    rest = [*chosen[shared:], *rejected[shared:]]
    return shared if all(item["role"] in ("assistant", "tool") for item in rest) else None
