"""BM25 over a few hundred short documents: deterministic, in memory, no dependency.

    index = BM25([("blue lamp", "The blue lamp costs 14 coins.")])
    index.search("price of the blue lamp", k=1)        # [(0, score)]

Okapi BM25 with the non-negative idf of Lucene. A title counts as twice its words, and a document whose whole title
occurs in the query, word after word, scores double: of "blue lamp", "blue cup" and "red lamp", a question about the
blue lamp means the first. Plural endings are cut. Not covered: large collections (an inverted index on disk, sparse
matrices), full stemming, languages without spaces.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

WORD = re.compile(r"[^\W_]+")
STOP_WORDS = frozenset(
    ("a", "an", "and", "are", "at", "by", "do", "does", "for", "from", "how", "in", "is", "it", "of", "on", "or", "the")
    + ("to", "what", "when", "where", "which", "who")
)


def words(text: str) -> list[str]:
    """Lower-case words and numbers of `text`, singular, without the commonest function words."""
    return [singular(word) for word in WORD.findall(text.lower()) if word not in STOP_WORDS]


def singular(word: str) -> str:
    """`word` without a regular English plural ending."""
    if len(word) < 4 or not word.endswith("s") or word.endswith("ss"):
        return word
    return word[:-2] if word.endswith(("shes", "ches", "xes", "sses")) else word[:-1]


def contains(terms: list[str], phrase: list[str]) -> bool:
    """Whether `phrase` occurs in `terms`, word after word."""
    size = len(phrase)
    return size > 0 and any(terms[at : at + size] == phrase for at in range(len(terms) - size + 1))


class BM25:
    """An index over (title, text) pairs."""

    def __init__(self, documents: Sequence[tuple[str, str]], k1: float = 1.2, b: float = 0.75) -> None:
        self.k1, self.b = k1, b
        self.counts = [Counter(words(title) * 2 + words(text)) for title, text in documents]
        self.titles = [words(title) for title, _ in documents]
        self.lengths = [sum(count.values()) for count in self.counts]
        self.mean_length = max(1.0, sum(self.lengths) / max(1, len(self.lengths)))
        holding = Counter(word for count in self.counts for word in count)
        total = len(self.counts)
        self.idf = {word: math.log(1 + (total - n + 0.5) / (n + 0.5)) for word, n in holding.items()}

    def search(self, query: str, k: int) -> list[tuple[int, float]]:
        """The `k` best documents with a positive score, best first; ties go to the earlier document."""
        terms = words(query)
        scored = []
        for number, count in enumerate(self.counts):
            norm = self.k1 * (1 - self.b + self.b * self.lengths[number] / self.mean_length)
            score = sum(
                self.idf[term] * count[term] * (self.k1 + 1) / (count[term] + norm) for term in terms if term in count
            )
            if score > 0:
                scored.append((-score * (2 if contains(terms, self.titles[number]) else 1), number))
        return [(number, -score) for score, number in sorted(scored)[:k]]
