"""The thinking budget of a row: after so many tokens of an open <think>, the engine writes the end of thinking itself.

`Thought(prompt, marks, budget)` follows one row: `force()` says which id to write instead of the sampled one, `add`
takes what was written. The budget is that of the row: a thinking block that is opened again uses what is left of it,
and nothing is sampled inside one once it is used up. How graders read a second block: `chat.thinking`.
Budget forcing as in Muennighoff et al. 2025 (arXiv:2501.19393, section 3.1), towards the short
side only. Not covered: what brevity is worth in training (see `grading.reward`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loopline.base.errors import UserError
from loopline.chat.thinking import THINK, THINK_END, mark_ids


@dataclass(frozen=True)
class ThinkingMarks:
    """The ids around a thinking block."""

    begin: int
    end: int
    closing: tuple[int, ...]
    """What closes thinking by force; holds `end`."""


def thinking_marks(tokenizer: Any, closing: Sequence[int] | None) -> ThinkingMarks:
    """A tokenizer's thinking tokens. Raises `UserError` where it has none or `closing` does not close thinking."""
    found = mark_ids(tokenizer) if hasattr(tokenizer, "fast") else None
    if found is None:
        raise UserError(
            f"A thinking budget needs tokens {THINK} and {THINK_END}, which this tokenizer lacks",
            "leave out thinking_budget, or use a checkpoint that thinks between these marks",
        )
    begin, end = found
    ids = (end,) if closing is None else tuple(closing)
    if end not in ids:
        raise UserError(f"thinking_end {ids} does not hold the id {end} of {THINK_END}", "add it, or leave it out")
    return ThinkingMarks(begin, end, ids)


class Thought:
    """Where a row is in its thinking, and what is left of its one budget."""

    def __init__(self, prompt: Sequence[int], marks: ThinkingMarks, budget: int) -> None:
        self.marks, self.left = marks, budget
        ends = (marks.begin, marks.end)
        # Thinking that the prompt leaves open goes on in the row, and uses the row's budget.
        self.open = next((token == marks.begin for token in reversed(prompt) if token in ends), False)
        self.pending: list[int] = []

    def force(self) -> int | None:
        """The id to write at this position, None to sample."""
        if self.open and self.left == 0 and not self.pending:
            self.pending = list(self.marks.closing)
        return self.pending[0] if self.pending else None

    def add(self, token: int) -> None:
        """Take the id that was written."""
        if self.pending:
            self.pending.pop(0)
            self.open = bool(self.pending)
        elif token in (self.marks.begin, self.marks.end):
            self.open = token == self.marks.begin
        elif self.open:
            self.left -= 1
