"""Statistics of evaluations: intervals, paired comparisons, pass@k, correction for many comparisons.

    estimate = mean_interval(scores)                       # one system
    found = paired_comparison(a_scores, b_scores)          # two systems on the same items; found.better decides
    adjusted = holm([found.p, ...])                        # for all that are printed together

Every number the product reports carries n and a 95% interval; a difference is called better only when a paired test
says so. Scores of None (could not be graded) are excluded pairwise and counted. `clusters` says which scores belong
together: samples of one item, or items about one passage. Coverage and false wins of all of it are simulated in
`benchmarks/statistics_null.py`. Not covered: power (see `evaluation.power`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

Z95 = 1.959963984540054
ALPHA = 0.05
"""Level of every test."""
RESAMPLES = 10_000
EXACT_FLIPS = 12
"""Differences up to which the sign-flip test goes through all flips."""
BLOCK = 2_000_000
"""Numbers held in memory at once by resampling."""


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


def wilson(k: float, n: float, z: float = Z95) -> tuple[float, float]:
    """95% interval of a proportion k/n (Wilson 1927); (0, 1) without observations. `n` may be an effective size."""
    if n == 0:
        return 0.0, 1.0
    share, z2 = k / n, z * z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = z * math.sqrt(max(0.0, share * (1 - share)) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # At the ends the interval reaches the end exactly; rounding must not say otherwise.
    low = 0.0 if k <= 0 else max(0.0, centre - half)
    high = 1.0 if k >= n else min(1.0, centre + half)
    return low, high


@lru_cache(maxsize=4096)
def t_quantile(freedom: int) -> float:
    """The 97.5% point of Student's t with `freedom` degrees of freedom; infinite with none."""
    if freedom < 1:
        return math.inf
    if freedom > 200:
        # Expansion around the normal quantile (Abramowitz and Stegun 26.7.5); off by less than 1e-9 here.
        z, v = Z95, freedom
        first = (z**3 + z) / 4
        second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
        third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
        return z + first / v + second / v**2 + third / v**3
    low, high = 0.0, 13.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_inside(middle, freedom) < 0.95 else (low, middle)
    return (low + high) / 2


def _t_inside(t: float, freedom: int) -> float:
    """Chance that |T| < t, by the finite sums for whole degrees of freedom (Abramowitz and Stegun 26.7.3, 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine2 = math.cos(angle) ** 2
    odd = freedom % 2
    term = total = math.cos(angle) if odd else 1.0
    for k in range(3 if odd else 2, freedom - 1, 2):
        term *= cosine2 * (k - 1) / k
        total += term
    if not odd:
        return math.sin(angle) * total
    return 2 / math.pi * (angle + (math.sin(angle) * total if freedom > 1 else 0.0))


def standard_error(values: np.ndarray, groups: np.ndarray | None = None) -> tuple[float, int]:
    """(standard error of the mean, number of clusters), for `values` (n,) and their cluster numbers (n,) from 0 on.

    Values of one cluster may depend on each other in any way: the variance is that of the clusters' summed deviations
    (Miller 2024, arXiv:2411.00640, section 2.2), times G / (G - 1) because the mean is estimated from the same G
    clusters. Without `groups` this is the usual sd / sqrt(n). Infinite with a single cluster.
    """
    deviations = values - values.mean()
    sums = deviations if groups is None else np.bincount(groups, weights=deviations)
    count = len(sums)
    if count < 2:
        return math.inf, count
    return float(math.sqrt(float(sums @ sums) * count / (count - 1)) / len(values)), count


def mean_interval(
    scores: Sequence[float | None], seed: int = 0, clusters: Sequence[Hashable] | None = None
) -> Estimate:
    """Mean of scores in [0, 1] with a 95% interval. `clusters` names the cluster of every score, in the same order.

    Wilson's interval when all are 0 or 1 and independent. Otherwise Wilson's with the effective number of scores, that
    is of independent zeros and ones with the same standard error, and t in place of z (Franco et al. 2019,
    doi:10.1093/jssam/smy019): near 0 and 1 it holds its coverage where mean +- 1.96 standard errors falls to 86%.
    Scores outside [0, 1] get a percentile bootstrap over clusters. Raises `ValueError` when nothing could be graded.
    """
    kept = [index for index, score in enumerate(scores) if score is not None]
    if not kept:
        raise ValueError("no score could be graded, so there is no mean")
    values = np.asarray([scores[index] for index in kept], dtype=float)
    groups = cluster_numbers([clusters[index] for index in kept]) if clusters is not None else None
    mean = math.fsum(values) / len(values)
    if values.min() < 0 or values.max() > 1:
        low, high = bootstrap(values, seed, groups=groups)
    elif groups is None and is_binary(values):
        low, high = wilson(float(values.sum()), len(values))
    else:
        low, high = _effective_wilson(values, mean, groups)
    return Estimate(mean, min(low, mean), max(high, mean), len(kept), len(scores) - len(kept))


def _effective_wilson(values: np.ndarray, mean: float, groups: np.ndarray | None) -> tuple[float, float]:
    error, count = standard_error(values, groups)
    if count < 2:
        return 0.0, 1.0
    # Equal scores show no spread: then each cluster counts as one observation.
    size = mean * (1 - mean) / error**2 if error > 0 and 0 < mean < 1 else count
    return wilson(mean * size, size, t_quantile(count - 1))


def is_binary(values: np.ndarray) -> bool:
    """Whether every score is 0 or 1."""
    return bool(np.all((values == 0) | (values == 1)))


def cluster_numbers(names: Sequence[Hashable]) -> np.ndarray | None:
    """Cluster of every score as a number from 0 on (n,); None when no two share one."""
    known: dict[Hashable, int] = {}
    numbers = np.asarray([known.setdefault(name, len(known)) for name in names], dtype=np.int64)
    return None if len(known) == len(names) else numbers


def bootstrap(
    values: np.ndarray, seed: int, draws: int = RESAMPLES, groups: np.ndarray | None = None
) -> tuple[float, float]:
    """95% percentile interval of the mean, (low, high), with a fixed seed; whole clusters are resampled."""
    rng = np.random.default_rng(seed)
    sums = values if groups is None else np.bincount(groups, weights=values)
    sizes = None if groups is None else np.bincount(groups)
    # In slices, so that memory does not grow with the number of items.
    step = max(1, BLOCK // len(sums))
    means = []
    for start in range(0, draws, step):
        chosen = rng.integers(0, len(sums), (min(step, draws - start), len(sums)))
        means.append(
            sums[chosen].mean(axis=1) if sizes is None else sums[chosen].sum(axis=1) / sizes[chosen].sum(axis=1)
        )
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return float(low), float(high)


def mcnemar(wins: int, losses: int) -> float:
    """Exact two-sided p-value of `wins` against `losses` discordant pairs (McNemar 1947, binomial)."""
    total = wins + losses
    term, tail = 1, 0
    for k in range(min(wins, losses) + 1):
        tail += term
        term = term * (total - k) // (k + 1)
    return float(min(1.0, 2 * tail / 2**total))


def tango(wins: int, losses: int, n: int, z: float = Z95) -> tuple[float, float]:
    """95% score interval of the difference of two paired proportions, (wins - losses) / n (Tango 1998).

    A difference d is inside when the score test with the other parameter estimated under d does not refuse it. At
    n = 50 it covers 94 to 98%, where the bootstrap falls to 86% if nearly all items are right. The interval is
    symmetric: swapping wins and losses mirrors it.
    """
    if n == 0:
        return -1.0, 1.0

    def score(d: float) -> float:
        middle = (2 * n - wins + losses) * d - wins - losses
        share = (math.sqrt(max(0.0, middle**2 + 8 * n * losses * d * (1 - d))) - middle) / (4 * n)
        return (wins - losses - n * d) / math.sqrt(max(n * (2 * share + d * (1 - d)), 1e-300))

    observed = (wins - losses) / n
    low = -1.0 if losses == n else _crossing(lambda d: score(d) - z, -1.0, observed)
    high = 1.0 if wins == n else _crossing(lambda d: score(d) + z, observed, 1.0)
    return low, high


def _crossing(falling: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function crosses 0 between `low` and `high`, by bisection."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return (low + high) / 2


def sign_flip(differences: np.ndarray, seed: int, draws: int = RESAMPLES) -> float:
    """Two-sided p-value of mean difference 0 by flipping signs: exact up to 12 items, otherwise by `draws` flips."""
    n = len(differences)
    # Sums of the same numbers in another order differ in the last digits.
    observed = abs(float(differences.sum())) * (1 - 1e-9) - 1e-12
    if n <= EXACT_FLIPS:
        signs = 1 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        return float(np.mean(np.abs(signs @ differences) >= observed))
    # A random byte flips eight differences at once: their 256 signed sums are looked up, not summed again.
    eights = np.pad(differences, (0, -n % 8)).reshape(-1, 8)
    signs = 2.0 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1) - 1
    sums = signs @ eights.T
    columns = np.arange(len(eights))
    rng = np.random.default_rng(seed)
    step = max(1, BLOCK // len(eights))
    hits = 0
    for start in range(0, draws, step):
        flips = rng.integers(0, 256, (min(step, draws - start), len(eights)), dtype=np.uint8)
        hits += int(np.count_nonzero(np.abs(sums[flips, columns].sum(axis=1)) >= observed))
    return (hits + 1) / (draws + 1)


def paired_comparison(
    a_scores: Sequence[float | None],
    b_scores: Sequence[float | None],
    seed: int = 0,
    clusters: Sequence[Hashable] | None = None,
) -> Comparison:
    """Compare two systems on the same items, in the same order; `clusters` names the cluster of every item.

    Scores of 0 and 1 on independent items: exact McNemar test, Tango's interval. Otherwise a sign-flip test, whole
    clusters flipped together, and an interval of t times the (clustered) standard error of the differences.
    Raises `ValueError` for lists of different length or without a single graded pair.
    """
    both = list(zip(a_scores, b_scores, strict=True))
    kept = [index for index, (a, b) in enumerate(both) if a is not None and b is not None]
    if not kept:
        raise ValueError("no pair could be graded, so there is nothing to compare")
    a = np.asarray([a_scores[index] for index in kept], dtype=float)
    b = np.asarray([b_scores[index] for index in kept], dtype=float)
    groups = cluster_numbers([clusters[index] for index in kept]) if clusters is not None else None
    differences = a - b
    difference = math.fsum(differences) / len(kept)
    if groups is None and is_binary(a) and is_binary(b):
        wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
        p = mcnemar(wins, losses)
        low, high = tango(wins, losses, len(kept))
    else:
        p = sign_flip(differences if groups is None else np.bincount(groups, weights=differences), seed)
        low, high = difference_interval(differences, groups)
        if not differences.any() and min(a.min(), b.min()) >= 0 and max(a.max(), b.max()) <= 1:
            # No spread is no proof that there is none: as for zeros and ones, one observation per cluster.
            low, high = tango(0, 0, len(kept) if groups is None else int(groups.max()) + 1)
    better: Literal["a", "b"] | None = None
    if p < ALPHA and difference != 0:
        better = "a" if difference > 0 else "b"
    return Comparison(len(kept), difference, low, high, p, better, len(both) - len(kept))


def difference_interval(differences: np.ndarray, groups: np.ndarray | None = None) -> tuple[float, float]:
    """95% interval of the mean of paired differences (n,): t times the standard error, clusters' where given.

    A single cluster says nothing: (-inf, inf), as JSON cannot say, is cut to the largest difference scores in [0, 1]
    can have or, for other scores, that was seen.
    """
    mean = float(differences.mean())
    error, count = standard_error(differences, groups)
    if count < 2:
        reach = max(1.0, float(np.abs(differences).max()))
        return -reach, reach
    half = t_quantile(count - 1) * error
    return mean - half, mean + half


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that one of k samples is right, given c right among n; unbiased (Chen et al. 2021, arXiv:2107.03374)."""
    _check_k(n, c, k, "pass@k")
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def pass_hat_k(n: int, c: int, k: int) -> float:
    """pass^k: chance that all of k samples are right, given c right among n (Yao et al. 2024, arXiv:2406.12045)."""
    _check_k(n, c, k, "pass^k")
    return math.comb(c, k) / math.comb(n, k)


def _check_k(n: int, c: int, k: int, name: str) -> None:
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"{name} needs 0 <= c <= n and 1 <= k <= n, not n={n}, c={c}, k={k}")


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for having made this many comparisons (Holm 1979), in the given order."""
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted
