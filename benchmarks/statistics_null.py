"""Simulate the statistics of evaluations: how often equal systems are told apart, and how often intervals are right.

    python benchmarks/statistics_null.py            # 10,000 trials of false wins, 3,000 of coverage per cell; 6 minutes
    python benchmarks/statistics_null.py --quick

Three kinds of scores: `binary` (one sample per item), `sampled` (the mean of four binary samples of an item whose own
chance varies), `clustered` (binary scores of five items per cluster that share their chance). False wins: two equal
systems on the same items, compared by `paired_comparison` at 5%; `family` corrects twelve such comparisons with `holm`
and asks whether any is called better. Coverage: how often the 95% interval of a mean, and of a paired difference, holds
the truth. The truth of every trial lies within 0.025 around the cell's p: at a single p the coverage of any interval of
a proportion jumps by several points from one n to the next, since counts are whole numbers (Brown, Cai and DasGupta
2001). Not covered: power (its formula is tested against simulation in tests/evaluation/test_power.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import NamedTuple

import numpy as np

from loopline.evaluation.statistics import holm, mean_interval, paired_comparison

SIZES = (50, 200, 1000)
SHARES = tuple(round(0.05 + 0.1 * k, 2) for k in range(10))
KINDS = ("binary", "sampled", "clustered")
SAMPLES = 4
MEMBERS = 5
"""Items per cluster."""
AGREEMENT = 0.3
"""Correlation of two samples of an item, or of two items of a cluster."""
SHARED = 0.5
"""Chance that both systems meet the same luck on an item."""
DIFFERENCE = 0.05
"""True difference in the cells of `difference_apart`."""
FAMILY = 12


class Trial(NamedTuple):
    """Scores of two systems on the same items, their clusters, and the true means."""

    a: np.ndarray
    b: np.ndarray
    clusters: list[int] | None
    truth: tuple[float, float]


def trials(kind: str, n: int, p: float, apart: float, count: int, seed: int) -> Iterator[Trial]:
    """`count` trials of `n` items; the means lie around `p` and `apart` apart."""
    rng = np.random.default_rng([seed, KINDS.index(kind), n, round(p * 1000), round(apart * 1000)])
    groups = [item // MEMBERS for item in range(n)] if kind == "clustered" else None
    for _ in range(count):
        mean = float(np.clip(rng.uniform(p - 0.025, p + 0.025), 0.001 + apart, 0.999))
        truth = (mean, mean - apart)
        if kind == "binary":
            a, b = _answers(rng, np.full(n, truth[0]), np.full(n, truth[1]))
        else:
            units = n if groups is None else -(-n // MEMBERS)
            # A chance per item or cluster with this mean, whose samples correlate by AGREEMENT.
            size = 1 / AGREEMENT - 1
            chance = rng.beta(mean * size, (1 - mean) * size, units)
            lower = chance * truth[1] / truth[0]
            if groups is None:
                both = [_answers(rng, chance, lower) for _ in range(SAMPLES)]
                a, b = (np.mean([side[k] for side in both], axis=0) for k in (0, 1))
            else:
                a, b = _answers(rng, chance[groups], lower[groups])
        yield Trial(a, b, groups, truth)


def _answers(rng: np.random.Generator, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Zeros and ones with chances `a` and `b` (n,), from the same luck where it is shared."""
    luck = rng.random((2, len(a)))
    luck[1] = np.where(rng.random(len(a)) < SHARED, luck[0], luck[1])
    return (luck[0] < a).astype(float), (luck[1] < b).astype(float)


@cache
def _binary_pairs(wins: int, losses: int, n: int) -> tuple[float, float, float]:
    """(p, low, high): for zeros and ones a comparison depends on these counts alone."""
    rest = n - wins - losses
    found = paired_comparison([1.0] * wins + [0.0] * (losses + rest), [0.0] * wins + [1.0] * losses + [0.0] * rest)
    return found.p, found.low, found.high


def compared(trial: Trial, seed: int) -> tuple[float, float, float]:
    """(p, low, high) of a trial."""
    if trial.clusters is None and set(np.unique(trial.a)) <= {0.0, 1.0}:
        return _binary_pairs(int((trial.a > trial.b).sum()), int((trial.a < trial.b).sum()), len(trial.a))
    found = paired_comparison(list(trial.a), list(trial.b), seed, trial.clusters)
    return found.p, found.low, found.high


@cache
def _binary_mean(right: int, n: int) -> tuple[float, float]:
    found = mean_interval([1.0] * right + [0.0] * (n - right))
    return found.low, found.high


def averaged(trial: Trial) -> tuple[float, float]:
    """Interval of the first system's mean."""
    if trial.clusters is None and set(np.unique(trial.a)) <= {0.0, 1.0}:
        return _binary_mean(int(trial.a.sum()), len(trial.a))
    found = mean_interval(list(trial.a), clusters=trial.clusters)
    return found.low, found.high


def false_wins(kind: str, n: int, p: float, count: int, seed: int = 0) -> float:
    """Share of trials in which one of two equal systems is called better at 5%."""
    found = [
        compared(trial, seed + number)[0] < 0.05 for number, trial in enumerate(trials(kind, n, p, 0, count, seed))
    ]
    return float(np.mean(found))


def family_wins(n: int, count: int, seed: int = 0) -> float:
    """Share of families of `FAMILY` comparisons of equal systems in which any is called better after Holm's."""
    shares = [0.2, 0.5, 0.8, 0.9] * (FAMILY // 4)
    members = [trials("binary", n, p, 0, count, seed + 1000 * number) for number, p in enumerate(shares)]
    found = [min(holm([compared(trial, 0)[0] for trial in family])) < 0.05 for family in zip(*members, strict=True)]
    return float(np.mean(found))


def coverage_of_means(kind: str, n: int, p: float, count: int, seed: int = 0) -> float:
    """How often the interval of a mean holds the truth."""
    found = [(averaged(trial), trial.truth[0]) for trial in trials(kind, n, p, 0, count, seed)]
    return float(np.mean([low <= truth <= high for (low, high), truth in found]))


def coverage_of_differences(kind: str, n: int, p: float, apart: float, count: int, seed: int = 0) -> float:
    """How often the interval of a paired difference holds the true one."""
    found = [(compared(trial, 0), trial.truth) for trial in trials(kind, n, p, apart, count, seed)]
    return float(np.mean([low <= truth[0] - truth[1] <= high for (_, low, high), truth in found]))


def table(measure: Callable[[str, int, float], float], kinds: tuple[str, ...], shares: tuple[float, ...]) -> list[dict]:
    """One row per kind and n: every cell, their mean and their range."""
    rows = []
    for kind in kinds:
        for n in SIZES:
            cells = {str(p): round(measure(kind, n, p), 4) for p in shares}
            values = list(cells.values())
            mean = round(float(np.mean(values)), 4)
            rows.append({"kind": kind, "n": n, "mean": mean, "low": min(values), "high": max(values), "cells": cells})
            print(f"  {kind:10} n={n:<5} mean {mean:.4f}, cells {min(values):.4f} to {max(values):.4f}", flush=True)
    return rows


def main() -> None:
    """Run every simulation and write the result."""
    import common

    arguments = common.parse(__doc__ or "")
    count, draws, flips = (400, 400, 60) if arguments.quick else (10_000, 3_000, 10_000)
    shares = (0.05, 0.5, 0.95) if arguments.quick else SHARES
    result: dict[str, object] = {"trials_false_wins": count, "trials_coverage": draws, "seeds": [0]}
    print("false wins of one comparison at 5%")
    wins = table(partial(false_wins, count=count), ("binary",), shares)
    # Ten thousand sign flips per trial: one cell each.
    wins += table(partial(false_wins, count=flips), ("sampled", "clustered"), (0.5,))
    print(f"false wins in {FAMILY} comparisons after Holm's correction")
    family = [{"n": n, "share": family_wins(n, count)} for n in SIZES]
    print("  " + ", ".join(f"n={row['n']}: {row['share']:.4f}" for row in family))
    print("coverage of the interval of a mean")
    means = table(partial(coverage_of_means, count=draws), KINDS, shares)
    print("coverage of the interval of a difference, equal systems and systems 0.05 apart")
    binary = partial(coverage_of_differences, count=draws)
    equal = table(partial(binary, apart=0.0), ("binary",), shares)
    apart = table(partial(binary, apart=DIFFERENCE), ("binary",), shares)
    result |= {"false_wins": wins, "false_wins_family": family, "coverage_mean": means}
    result |= {"coverage_difference_equal": equal, "coverage_difference_apart": apart}
    common.finish("statistics_null", result, arguments)


if __name__ == "__main__":
    main()
