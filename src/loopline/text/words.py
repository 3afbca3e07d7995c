"""Words of a text, runs of them, the normal form of an item, and set similarity: one definition for every package.

    words_of("What is 2+2?")              # ["what", "is", "2", "2"]
    normal_form(" What is  2+2 ? ")       # "what is 2 + 2": equal items have equal normal forms

Not covered: documents by the million (see `text.kernel`), scripts without spaces.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

WORD = re.compile(r"\w+")
SYMBOL = re.compile(r"\w+|[^\w\s]")
EDGE = "?!.,:;=\"'` "
"""What may be at an item's edges without making it another item."""


def words_of(text: str) -> list[str]:
    """Lower-case words and numbers."""
    return WORD.findall(text.lower())


def symbols_of(text: str) -> list[str]:
    """Lower-case words, numbers and every other character that is no space."""
    return SYMBOL.findall(text.lower())


def ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Every run of `n` words, in order, repeated ones too."""
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def normal_form(text: str) -> str:
    """An item without case, spacing and punctuation at its edges. Operators inside count: `12+5-3` is not `12-5+3`."""
    return " ".join(symbols_of(text)).strip(EDGE)


def jaccard(first: str, second: str, n: int = 3) -> float:
    """Jaccard similarity of the sets of word n-grams of two texts, in [0, 1]; of the words when either has fewer."""
    a, b = words_of(first), words_of(second)
    size = min(n, len(a), len(b)) or 1
    left, right = set(ngrams(a, size)), set(ngrams(b, size))
    return len(left & right) / len(left | right) if left | right else float(first == second)
