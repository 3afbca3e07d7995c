"""Comparison of parts: what is asked in the held-out part is asked nowhere else, whatever its case or spacing.

    texts = asked(row)                                  # normal forms of what one row must share with no other part
    kept, dropped = apart(train_rows, [*heldout, *dev])

Not covered: paraphrases, and items inside longer documents (see `text.overlap`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loopline.text.words import normal_form

Row = dict[str, Any]


@dataclass(frozen=True)
class Overlap:
    """One row that asks what a row of another part asks."""

    row: Row
    other: Row

    def __str__(self) -> str:
        return f"{self.row['id']} asks what {self.other['id']} asks: {prompt_of(self.row)[:80]!r}"


def prompt_of(row: Mapping[str, Any]) -> str:
    """Everything the user says in a row's prompt, as one text."""
    return "\n".join(str(turn["content"]) for turn in row["messages"] if turn["role"] == "user")


def asked(row: Mapping[str, Any]) -> set[str]:
    """Normal forms of what makes the row the same task: its prompt and, where code is asked for, the program."""
    texts = [prompt_of(row)]
    if "tests" in {**row.get("item", {}), **row}:
        texts.append(str(row.get("answer", "")))
    return {form for text in texts if (form := normal_form(text))}


def apart(rows: Sequence[Row], others: Iterable[Row]) -> tuple[list[Row], list[Overlap]]:
    """The rows that share no id, prompt or program with `others`, and the overlaps of the rest."""
    known = {form: other for other in others for form in (f"id|{other['id']}", *asked(other))}
    kept: list[Row] = []
    overlaps: list[Overlap] = []
    for row in rows:
        other = next((known[form] for form in (f"id|{row['id']}", *sorted(asked(row))) if form in known), None)
        if other is None:
            kept.append(row)
        else:
            overlaps.append(Overlap(row, other))
    return kept, overlaps
