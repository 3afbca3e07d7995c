"""Held-out text in prompts and answers: what a model is to be tested on must not become its training data.

    heldout = HeldoutText(["How many ...", ...])
    heldout.holds("... how many ...")

Long items are found by any run of 13 shared words, shorter ones as a whole. Case, spacing and marks do not count. Not
covered: paraphrases; the corpus has an index of its own for documents by the million.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

RUN = 13
"""Shared words that give a long item away."""
WHOLE = 8
"""Words from which a shorter item is looked for inside other text; below that only equal text counts."""


def words_of(text: str) -> list[str]:
    """Lower-case words and numbers of a text."""
    return re.findall(r"\w+", text.lower())


class HeldoutText:
    """Held-out items, ready to be looked for."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.runs: dict[int, set[tuple[str, ...]]] = {}
        self.short: set[tuple[str, ...]] = set()
        for text in texts:
            words = words_of(text)
            if len(words) >= RUN:
                self.runs.setdefault(RUN, set()).update(_runs(words, RUN))
            elif len(words) >= WHOLE:
                self.runs.setdefault(len(words), set()).add(tuple(words))
            elif words:
                self.short.add(tuple(words))

    def holds(self, text: str) -> bool:
        """Whether `text` holds an item, or 13 words of one."""
        words = words_of(text)
        if tuple(words) in self.short:
            return True
        return any(not known.isdisjoint(_runs(words, length)) for length, known in sorted(self.runs.items()))


def _runs(words: Sequence[str], length: int) -> set[tuple[str, ...]]:
    return {tuple(words[start : start + length]) for start in range(len(words) - length + 1)}


def similarity(first: str, second: str, n: int = 3) -> float:
    """Jaccard similarity of the sets of word n-grams of two texts, in [0, 1]; of the words when either has fewer."""
    a, b = words_of(first), words_of(second)
    size = min(n, len(a), len(b)) or 1
    left, right = _runs(a, size), _runs(b, size)
    return len(left & right) / len(left | right) if left | right else float(first == second)
