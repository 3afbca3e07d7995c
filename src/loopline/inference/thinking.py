"""The thinking budget of a row: after so many tokens of an open <think>, the engine writes the end of thinking itself.

`Thought(prompt, marks, budget)` follows one row: `force()` says which id to write instead of the sampled one, `add`
takes what was written. Budget forcing as in Muennighoff et al. 2025 (arXiv:2501.19393, section 3.1), towards the short
side only. Not covered: what brevity is worth in training (see `grading.reward`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loopline.base.errors import UserError
from loopline.chat.tokenizer import THINK, THINK_END, Tokenizer


@dataclass(frozen=True)
class ThinkingMarks:
    """The ids around a thought."""

    begin: int
    end: int
    closing: tuple[int, ...]
    """What closes a thought by force; holds `end`."""


def thinking_marks(tokenizer: Any, closing: Sequence[int] | None) -> ThinkingMarks:
    """The marks of a tokenizer. Raises `UserError` when it has none, or when `closing` does not close a thought."""
    begin: int | None = THINK
    end: int | None = THINK_END
    if type(tokenizer) is not Tokenizer:
        fast = getattr(tokenizer, "fast", None)
        begin, end = (None if fast is None else fast.token_to_id(mark) for mark in ("<think>", "</think>"))
    if begin is None or end is None:
        raise UserError(
            "A thinking budget needs tokens <think> and </think>, which this tokenizer lacks",
            "leave out thinking_budget, or use a checkpoint that thinks between these marks",
        )
    ids = (end,) if closing is None else tuple(closing)
    if end not in ids:
        raise UserError(f"thinking_end {ids} does not hold the id {end} of </think>", "add it, or leave it out")
    return ThinkingMarks(begin, end, ids)


class Thought:
    """Where a row stands in its thinking."""

    def __init__(self, prompt: Sequence[int], marks: ThinkingMarks, budget: int) -> None:
        self.marks, self.budget = marks, budget
        self.left: int | None = None
        self.pending: list[int] = []
        for token in prompt:
            if token in (marks.begin, marks.end):
                # A thought that the prompt leaves open starts its budget with the row.
                self._mark(token)

    def force(self) -> int | None:
        """The id to write at this position, None to sample."""
        if self.left == 0 and not self.pending:
            self.pending = list(self.marks.closing)
        return self.pending[0] if self.pending else None

    def add(self, token: int) -> None:
        """Take the id that was written."""
        if self.pending:
            self.pending.pop(0)
            if not self.pending:
                self.left = None
        elif token in (self.marks.begin, self.marks.end):
            self._mark(token)
        elif self.left is not None:
            self.left -= 1

    def _mark(self, token: int) -> None:
        if token == self.marks.end:
            self.left = None
        elif self.left is None:
            self.left = self.budget
