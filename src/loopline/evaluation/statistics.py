"""Statistics of evaluations: intervals, paired comparisons, pass@k, correction for many comparisons.

Every number the product reports carries n and a 95% interval; a difference is called better only when a paired test
says so. Scores of None (could not be graded) are excluded pairwise and counted. Not covered: clustered tasks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Z95 = 1.959963984540054
DRAWS = 10_000


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95% interval over `n` scores; `ungradable` more were left out."""

    value: float
    low: float
    high: float
    n: int
    ungradable: int = 0


@dataclass(frozen=True)
class Comparison:
    """a against b on the same items: mean of a - b with its 95% interval, and a two-sided p-value."""

    n: int
    difference: float
    low: float
    high: float
    p: float
    better: Literal["a", "b"] | None
    """Which is better at the 5% level; None when the test does not say."""
    ungradable: int = 0
    """Pairs left out because one of the two could not be graded."""


def wilson(k: float, n: int) -> tuple[float, float]:
    """95% interval of a proportion k/n (Wilson 1927); (0, 1) without observations."""
    if n == 0:
        return 0.0, 1.0
    share, z2 = k / n, Z95 * Z95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # At the ends the interval reaches the end exactly; rounding must not say otherwise.
    low = 0.0 if k <= 0 else max(0.0, centre - half)
    high = 1.0 if k >= n else min(1.0, centre + half)
    return low, high


def mean_interval(scores: Sequence[float | None], seed: int = 0) -> Estimate:
    """Mean of scores in [0, 1]: Wilson's interval when all are 0 or 1, otherwise a percentile bootstrap.

    Raises `ValueError` when nothing could be graded.
    """
    known = [score for score in scores if score is not None]
    missing = len(scores) - len(known)
    if not known:
        raise ValueError("no score could be graded, so there is no mean")
    mean = math.fsum(known) / len(known)
    if all(score in (0.0, 1.0) for score in known):
        low, high = wilson(sum(known), len(known))
    else:
        low, high = bootstrap(np.asarray(known), seed)
    return Estimate(mean, low, high, len(known), missing)


def bootstrap(values: np.ndarray, seed: int, draws: int = DRAWS) -> tuple[float, float]:
    """95% percentile interval of the mean, (low, high), with a fixed seed."""
    rng = np.random.default_rng(seed)
    # In slices, so that memory does not grow with the number of items.
    step = max(1, 2_000_000 // len(values))
    means = np.concatenate(
        [
            values[rng.integers(0, len(values), (min(step, draws - start), len(values)))].mean(axis=1)
            for start in range(0, draws, step)
        ]
    )
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def mcnemar(wins: int, losses: int) -> float:
    """Exact two-sided p-value of `wins` against `losses` discordant pairs (McNemar 1947, binomial)."""
    total = wins + losses
    tail = sum(math.comb(total, k) for k in range(min(wins, losses) + 1))
    return float(min(1.0, 2 * tail / 2**total))


def sign_flip(differences: np.ndarray, seed: int, draws: int = DRAWS) -> float:
    """Two-sided p-value of mean difference 0 by flipping signs: exact up to 12 items, otherwise by `draws` flips."""
    observed = abs(differences.sum())
    n = len(differences)
    if n <= 12:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        return float(np.mean(np.abs(signs @ differences) >= observed - 1e-12))
    rng = np.random.default_rng(seed)
    step = max(1, 2_000_000 // n)
    hits = 0
    for start in range(0, draws, step):
        signs = rng.integers(0, 2, (min(step, draws - start), n)) * 2 - 1
        hits += int(np.sum(np.abs(signs @ differences) >= observed - 1e-12))
    return (hits + 1) / (draws + 1)


def paired_comparison(a_scores: Sequence[float | None], b_scores: Sequence[float | None], seed: int = 0) -> Comparison:
    """Compare two systems on the same items, in the same order.

    p: exact McNemar for scores of 0 and 1, otherwise a paired sign-flip test. The interval is a paired bootstrap.
    Raises `ValueError` for lists of different length or without a single graded pair.
    """
    pairs = [(a, b) for a, b in zip(a_scores, b_scores, strict=True) if a is not None and b is not None]
    if not pairs:
        raise ValueError("no pair could be graded, so there is nothing to compare")
    differences = np.asarray([a - b for a, b in pairs])
    difference = math.fsum(differences) / len(pairs)
    if all(score in (0.0, 1.0) for pair in pairs for score in pair):
        p = mcnemar(int((differences > 0).sum()), int((differences < 0).sum()))
    else:
        p = sign_flip(differences, seed)
    low, high = bootstrap(differences, seed)
    better: Literal["a", "b"] | None = None
    if p < 0.05 and difference != 0:
        better = "a" if difference > 0 else "b"
    return Comparison(len(pairs), difference, low, high, p, better, len(a_scores) - len(pairs))


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that one of k samples is right, given c right among n; unbiased (Chen et al. 2021, arXiv:2107.03374)."""
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, not n={n}, c={c}, k={k}")
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for having made this many comparisons (Holm 1979), in the given order."""
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted
