"""Hybrid policies: which prompts of a step are asked with thinking switched off in the template.

A prompt without thinking ends in an empty, closed block of thinking (see `attempts.ask.render_prompt`). Those tokens
belong to the prompt, so no loss sees them. Not covered: budgets inside thinking (see `Sampling.thinking_budget`) and
what brevity is worth (see `grading.reward`).
"""

from __future__ import annotations

import math


def thinking_switches(count: int, share: float, start: int = 0) -> list[bool]:
    """For each of `count` prompts whether it may think; over any run of prompts from `start` on, `share` may not.

    Evenly spread, so that neither the tasks' order nor the step decides which kind a prompt is.
    """
    return [
        math.floor((start + number + 1) * share + 1e-9) == math.floor((start + number) * share + 1e-9)
        for number in range(count)
    ]
