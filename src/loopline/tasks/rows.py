"""Rows of training data, one type per use: what `tasks.layouts` makes of files, and what rows artifacts hold.

Messages are in OpenAI's form. `tools`, where a row has them, are the schemas that the chat template declares. Not
covered: tasks with their graders (see `tasks.task`), sampled answers (see `attempts.attempt`).
"""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

Message = dict[str, Any]
"""{"role", "content"}, and "tool_calls", "tool_call_id", "name", "reasoning_content", "weight" where they are given."""


class Row(TypedDict):
    """What every row has."""

    id: str
    """Unique in its file."""
    tools: NotRequired[list[dict[str, Any]]]
    """Tool schemas in OpenAI's form."""


class Conversation(Row):
    """A conversation to imitate."""

    messages: list[Message]
    given: int
    """Leading messages that carry no loss, whoever wrote them."""


class Pair(Row):
    """Two answers to one prompt, the better one first."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]


class Labelled(Row):
    """An answer with a label: 1 or 0 for good or bad, or a number to predict."""

    prompt: list[Message]
    completion: list[Message]
    label: float


class Solution(Row):
    """A solution in steps, each with whether it is right (or a share of right continuations)."""

    prompt: list[Message]
    steps: list[str]
    labels: list[float]


class Prompt(Row):
    """A prompt to answer, with the reference and every column of the file for graders."""

    messages: list[Message]
    answer: str
    item: dict[str, Any]
