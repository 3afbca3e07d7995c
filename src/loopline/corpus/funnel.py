"""The funnel: what each step of data engineering took out, counted by reason, with examples.

Use: `funnel = Funnel(documents, samples=3)`; a step returns a `Change` and `funnel.apply("name", change)` carries it
out and writes the line of the table. `funnel.rows()` is the content of funnel.json.
Not covered: the steps themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from loopline.corpus.document import Document, digest

EXCERPT = 160


@dataclass
class Change:
    """What a step does to a list of documents, by their numbers.

    `removed` gives a reason per dropped document, `edited` the new version of a kept one, `cut` pieces of text taken
    out of kept documents as (number, reason, piece), `counts` further reasons with no piece to show.
    """

    removed: dict[int, str] = field(default_factory=dict)
    edited: dict[int, Document] = field(default_factory=dict)
    cut: list[tuple[int, str, str]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


class Funnel:
    """Documents on their way through the steps, and the table of what happened to them."""

    def __init__(
        self, documents: Sequence[Document], samples: int = 3, censor: Callable[[str], str] = lambda text: text
    ) -> None:
        """`censor` goes over every sample: a report must not keep the personal data the funnel takes out."""
        self.documents = list(documents)
        self._censor = censor
        self._samples = samples
        self._rows: list[dict[str, Any]] = []

    def apply(self, step: str, change: Change) -> None:
        """Carry out `change` on the current documents and record it under `step`."""
        before = self.documents
        after = [
            change.edited.get(number, document)
            for number, document in enumerate(before)
            if number not in change.removed
        ]
        reasons = Counter(change.removed.values())
        reasons.update(reason for _, reason, _ in change.cut)
        reasons.update(change.counts)
        shown = [(number, reason, before[number].text) for number, reason in change.removed.items()] + change.cut
        self._rows.append(
            {
                "step": step,
                "documents_in": len(before),
                "documents_out": len(after),
                "bytes_in": size_of(before),
                "bytes_out": size_of(after),
                "reasons": dict(sorted(reasons.items())),
                "samples": self._choose(before, shown),
            }
        )
        self.documents = after

    def _choose(self, before: list[Document], shown: list[tuple[int, str, str]]) -> list[dict[str, str]]:
        """Up to `samples` examples of each reason, chosen by hash so that they are not all from one source."""
        chosen: list[dict[str, str]] = []
        taken: Counter[str] = Counter()
        keyed = sorted(shown, key=lambda item: (item[1], digest(f"{before[item[0]].id}{item[2][:EXCERPT]}")))
        for number, reason, text in keyed:
            if taken[reason] < self._samples:
                taken[reason] += 1
                chosen.append(
                    {"id": before[number].id, "reason": reason, "excerpt": excerpt(self._censor(text[: EXCERPT * 10]))}
                )
        return chosen

    def rows(self) -> list[dict[str, Any]]:
        """One row per step, in order."""
        return list(self._rows)


def excerpt(text: str) -> str:
    """The first characters of a text on one line."""
    short = " ".join(text[: EXCERPT * 2].split())
    return short if len(short) <= EXCERPT else short[: EXCERPT - 1] + "…"


def size_of(documents: Sequence[Document]) -> int:
    """UTF-8 bytes of the documents together."""
    return sum(
        len(document.text) if document.text.isascii() else len(document.text.encode("utf-8")) for document in documents
    )
