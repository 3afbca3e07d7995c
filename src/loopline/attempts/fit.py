"""Prompts after which an answer fits the context length.

    tasks = that_fit(tokenizer, tasks, max_new_tokens=256, limit=position_limit(model), overlong="drop")

Not covered: answers that end earlier than allowed, for which a longer prompt might do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from loopline.attempts.ask import render_prompt
from loopline.base.errors import UserError
from loopline.chat.tokenizer import Tokenizer
from loopline.tasks.task import Task


def that_fit(
    tokenizer: Tokenizer,
    tasks: Sequence[Task],
    max_new_tokens: int,
    limit: int | None,
    overlong: Literal["refuse", "drop"] = "refuse",
) -> list[Task]:
    """The tasks whose prompts leave `max_new_tokens` of the model's `limit` tokens (None for a model without one).

    Raises `UserError` naming the longest prompt and the fix for others, or leaves them out with "drop"; also when none
    is left.
    """
    if limit is None:
        return list(tasks)
    lengths = [len(render_prompt(tokenizer, task)) for task in tasks]
    space = limit - max_new_tokens
    long = [number for number, length in enumerate(lengths) if length > space]
    if long and overlong == "refuse":
        longest = max(long, key=lambda number: lengths[number])
        fix = "leave them out with overlong=drop"
        if lengths[longest] + 1 < limit:
            fix = f"leave them room with max_new_tokens={limit - lengths[longest]}, or {fix}"
        raise UserError(
            f"{len(long)} of {len(tasks)} prompts are too long: the model takes {limit} tokens, of which an answer may "
            f"take {max_new_tokens}; the longest prompt, {tasks[longest].id}, has {lengths[longest]}",
            fix,
        )
    kept = [task for task, length in zip(tasks, lengths, strict=True) if length <= space]
    if not kept:
        raise UserError(f"No prompt leaves room for {max_new_tokens} tokens of answer", "lower max_new_tokens")
    return kept
