"""Held-out text in prompts and answers: what a model is to be tested on must not become its training data.

    heldout = HeldoutText(["How many ...", ...])
    heldout.holds("... how many ...")

Long items are found by any run of 13 shared words, shorter ones as a whole. Case, spacing and punctuation do not count.
A run that several items have in common is the template they were made from, and gives none of them away. Not covered:
paraphrases; the corpus has an index of its own for documents by the million.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from loopline.text.words import ngrams, normal_form, words_of

RUN = 13
"""Shared words that give a long item away."""
WHOLE = 8
"""Words from which a shorter item is looked for inside other text; below that only equal text counts."""
TEMPLATE = 3
"""Items that share a run from which on it is a template."""


class HeldoutText:
    """Held-out items, ready to be looked for."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.whole = {form: text for text in texts if (form := normal_form(text))}
        counts: Counter[tuple[str, ...]] = Counter()
        for text in self.whole.values():
            words = words_of(text)
            if len(words) >= WHOLE:
                counts.update(set(ngrams(words, min(RUN, len(words)))))
        self.runs: dict[int, set[tuple[str, ...]]] = {}
        for run, count in counts.items():
            if count < TEMPLATE:
                self.runs.setdefault(len(run), set()).add(run)

    def holds(self, text: str) -> bool:
        """Whether `text` is an item, or holds one, or 13 words that only it has."""
        if normal_form(text) in self.whole:
            return True
        words = words_of(text)
        return any(not known.isdisjoint(ngrams(words, length)) for length, known in sorted(self.runs.items()))
