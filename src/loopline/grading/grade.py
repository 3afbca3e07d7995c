"""What is graded and what a grade is, and where in a text the final answer stands.

A score of None means that nothing could be learnt about the sample ("could not be graded"): it is excluded and
counted, never a zero. What the policy does wrong, including code that hangs or crashes, is a zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from loopline.tasks.task import Task

THINK, THINK_END = "<think>", "</think>"


@dataclass(frozen=True)
class Sample:
    """One output to grade."""

    task: Task
    """What was asked."""
    text: str
    """What the assistant wrote last, thinking included, without the closing `<|end|>`."""
    finish: str = "stop"
    """"stop", or "length" when the limit cut it off."""
    messages: tuple[Mapping[str, Any], ...] = ()
    """The whole trajectory when there were several turns."""


@dataclass(frozen=True)
class Grade:
    """What a grader found."""

    score: float | None
    """In [0, 1]; None when it could not be graded."""
    steps: tuple[float, ...] = ()
    """One score per reasoning step, where the grader looks at steps."""
    evidence: str = ""
    """One sentence on why."""
    flags: tuple[str, ...] = ()
    """Named observations such as "truncated" or "hack_exit", sorted."""
    seconds: float = field(default=0.0, compare=False)
    """Time it took; not part of equality and never written into an artifact."""


def split_thinking(text: str) -> tuple[str | None, str | None]:
    """(thinking, answer). Thinking is None when the text has none; answer is None when thinking never ends."""
    if THINK not in text and THINK_END not in text:
        return None, text.strip()
    thinking, mark, answer = text.rpartition(THINK_END)
    if not mark or THINK in answer:
        return text.partition(THINK)[2], None
    return thinking.partition(THINK)[2] if THINK in thinking else thinking, answer.strip()


def rejection(sample: Sample) -> Grade | None:
    """The zero that any grader gives to an answer that was cut off or never came; None when there is an answer."""
    if sample.finish == "length":
        return Grade(0.0, evidence="the output was cut off by the length limit", flags=("truncated",))
    answer = split_thinking(sample.text)[1]
    if answer is None:
        return Grade(0.0, evidence="thinking never ends, so there is no answer", flags=("unclosed_think",))
    if not answer:
        return Grade(0.0, evidence="the answer is empty", flags=("empty",))
    return None
