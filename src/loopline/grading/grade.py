"""What is graded and what a grade is, and where in a text the final answer is.

A score of None means that nothing could be learned about the sample ("could not be graded"): it is excluded and
counted, never a zero. What the policy does wrong, including code that hangs or crashes, is a zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from loopline.chat.thinking import THINK as THINK
from loopline.chat.thinking import THINK_END as THINK_END
from loopline.chat.thinking import read_thinking
from loopline.tasks.task import Task


@dataclass(frozen=True)
class Sample:
    """One output to grade."""

    task: Task
    """What was asked."""
    text: str
    """What the assistant wrote last, thinking included, without its stop token (`chat.thinking.answer_text`)."""
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
    """(thinking, answer), the answer stripped.

    Thinking is None when the text has none; answer is None when thinking never ends; both are None for a malformed
    text, by the rule of `chat.thinking`: thinking is at the beginning, and is opened and closed once.
    """
    found = read_thinking(text)
    return found.reasoning, None if found.answer is None else found.answer.strip()


def rejection(sample: Sample) -> Grade | None:
    """The zero that any grader gives to an answer that was cut off or never came; None when there is an answer."""
    if sample.finish == "length":
        return Grade(0.0, evidence="the output was cut off by the length limit", flags=("truncated",))
    found = read_thinking(sample.text)
    if found.problem is not None:
        return Grade(0.0, evidence=f"the thinking part is malformed: {found.problem}", flags=("malformed_think",))
    if found.answer is None:
        return Grade(0.0, evidence="thinking never ends, so there is no answer", flags=("unclosed_think",))
    if not found.answer.strip():
        return Grade(0.0, evidence="the answer is empty", flags=("empty",))
    return None
