"""Text similarity measures of the OpenAI grader format, each in [0, 1] and 1 for equal non-empty texts.

fuzzy_match (longest matching blocks), bleu (Papineni et al. 2002, to 4-grams, +1 smoothing above unigrams), gleu (Wu et
al. 2016, arXiv:1609.08144), rouge_1..5 and rouge_l (Lin 2004, F1), cosine (over word counts, no embedding model).
Not covered: meteor, which needs a synonym dictionary.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from difflib import SequenceMatcher

from loopline.text.words import ngrams, symbols_of

Words = list[str]


def counts(words: Words, n: int) -> Counter[tuple[str, ...]]:
    """Counts of the n-grams."""
    return Counter(ngrams(words, n))


def f1(common: int, left: int, right: int) -> float:
    """Harmonic mean of common/left and common/right."""
    return 2 * common / (left + right) if left + right else 0.0


def rouge_n(n: int) -> Callable[[Words, Words], float]:
    """F1 of n-gram overlap."""

    def measure(output: Words, reference: Words) -> float:
        a, b = counts(output, n), counts(reference, n)
        if not a and not b:
            return float(output == reference and bool(output))
        return f1((a & b).total(), a.total(), b.total())

    return measure


def rouge_l(output: Words, reference: Words) -> float:
    """F1 of the longest common subsequence."""
    row = [0] * (len(reference) + 1)
    for word in output:
        previous = 0
        for index, other in enumerate(reference):
            previous, row[index + 1] = (
                row[index + 1],
                previous + 1 if word == other else max(row[index + 1], row[index]),
            )
    return f1(row[-1], len(output), len(reference))


def bleu(output: Words, reference: Words) -> float:
    """Sentence BLEU with brevity penalty."""
    if not output or not reference:
        return 0.0
    logs = []
    for n in range(1, min(4, len(output), len(reference)) + 1):
        a, b = counts(output, n), counts(reference, n)
        smoothing = 0 if n == 1 else 1
        common = (a & b).total()
        if common + smoothing == 0:
            return 0.0
        logs.append(math.log((common + smoothing) / (a.total() + smoothing)))
    brevity = min(0.0, 1 - len(reference) / len(output))
    return math.exp(sum(logs) / len(logs) + brevity)


def gleu(output: Words, reference: Words) -> float:
    """The lesser of precision and recall over all 1- to 4-grams."""
    a: Counter[tuple[str, ...]] = sum((counts(output, n) for n in range(1, 5)), Counter())
    b: Counter[tuple[str, ...]] = sum((counts(reference, n) for n in range(1, 5)), Counter())
    return (a & b).total() / max(a.total(), b.total()) if a and b else 0.0


def cosine(output: Words, reference: Words) -> float:
    """Cosine of the word counts."""
    a, b = Counter(output), Counter(reference)
    norm = math.sqrt(sum(v * v for v in a.values()) * sum(v * v for v in b.values()))
    return min(1.0, sum(a[word] * b[word] for word in a) / norm) if norm else 0.0


def fuzzy_match(output: Words, reference: Words) -> float:
    """Share of matching blocks (Ratcliff and Obershelp)."""
    return SequenceMatcher(None, output, reference, autojunk=False).ratio() if output and reference else 0.0


METRICS: dict[str, Callable[[Words, Words], float]] = {
    "fuzzy_match": fuzzy_match,
    "bleu": bleu,
    "gleu": gleu,
    "cosine": cosine,
    "rouge_l": rouge_l,
    **{f"rouge_{n}": rouge_n(n) for n in range(1, 6)},
}


def similarity(metric: str, output: str, reference: str) -> float:
    """The measure named `metric` between two texts; both are cut to 5,000 words first."""
    return METRICS[metric](symbols_of(output)[:5000], symbols_of(reference)[:5000])
