"""Hybrid policies: the same model asked to think, or to answer at once, by a switch in the template.

A prompt without thinking ends in an empty, closed block of thinking, as stock templates write with
`enable_thinking=False`. Those marks belong to the prompt, so no loss sees them. Not covered: budgets inside thinking
(see `Sampling.thinking_budget`) and what brevity is worth (see `grading.reward`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from loopline.base.errors import UserError
from loopline.chat.tokenizer import THINK, THINK_END, Tokenizer


def render_prompt(tokenizer: Any, messages: Sequence[Mapping[str, Any]], thinking: bool = True) -> list[int]:
    """Ids of a conversation up to where the assistant writes, with thinking open or closed.

    Raises `UserError` when the template has no such switch.
    """
    if isinstance(tokenizer, Tokenizer):
        prompt = tokenizer.render(messages, add_generation_prompt=True)
        return prompt if thinking else [*prompt, THINK, THINK_END]
    prompt = list(tokenizer.render(messages, add_generation_prompt=True))
    if thinking:
        return prompt
    closed = list(tokenizer.render(messages, add_generation_prompt=True, enable_thinking=False))
    if closed == prompt:
        raise UserError(
            "The checkpoint's chat template renders the same prompt with enable_thinking and without",
            "set rollout.no_think_share to 0, or use a checkpoint whose template can switch thinking off",
        )
    return closed


def thinking_switches(count: int, share: float, start: int = 0) -> list[bool]:
    """For each of `count` prompts whether it may think; over any run of prompts from `start` on, `share` may not.

    Evenly spread, so that neither the tasks' order nor the step decides which kind a prompt is.
    """
    return [
        math.floor((start + number + 1) * share + 1e-9) == math.floor((start + number) * share + 1e-9)
        for number in range(count)
    ]
