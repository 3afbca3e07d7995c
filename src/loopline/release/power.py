"""What a non-inferiority comparison can tell with the tasks it has.

    limits = equal_limits(differences, trials=2000, seed=0)             # one number per simulated equal candidate
    margin = margin_of(limits, len(differences), asked=0.06, comparisons=6, power=config.power, name="math")
    chance_equal_passes([(limits, margin.used)])

A comparison passes when the lower end of the 95% interval of candidate minus reference lies above -margin. With few or
noisy tasks an equal candidate fails that by chance. Equal candidates are simulated from the noise at hand, never from
the observed difference: how often the two sides differ is kept, who wins is tossed. Their lower ends say which margin
the tasks support (`needed`) and the smallest true loss that is blocked four times out of five (`detectable`). Intervals
are those of `evaluation.statistics`. Not covered: the power to find gains (see `evaluation.power`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loopline.base.errors import UserError
from loopline.evaluation.statistics import BLOCK, Z95, t_quantile
from loopline.release.config import Power

DETECTED = 0.8
"""Chance with which a loss of size `detectable` is blocked."""


@dataclass(frozen=True)
class Margin:
    """The margin of one comparison, and what it is worth."""

    asked: float
    used: float
    """`asked`, or the smallest margin that the tasks support where that is wider."""
    needed: float
    """The smallest margin that an equal candidate passes often enough."""
    detectable: float
    """Smallest true loss that is blocked with a chance of 80% under `used`."""
    tasks_needed: int
    """About how many tasks would support the asked margin."""

    @property
    def widened(self) -> bool:
        return self.used > self.asked


def equal_limits(differences: Sequence[float], trials: int, seed: int) -> np.ndarray:
    """For each simulated equal candidate the smallest margin at which it would pass: minus its interval's lower end.

    `differences` are of paired scores. Where all are -1, 0 or 1 the interval is Tango's, and one more discordant task
    of each kind keeps a few equal outcomes from being taken for certainty; otherwise it is Student's.
    """
    values = np.asarray(differences, dtype=float)
    rng = np.random.default_rng(seed)
    n = len(values)
    if np.isin(values, (-1.0, 0.0, 1.0)).all():
        discordance = (np.count_nonzero(values) + 1) / (n + 2)
        apart = rng.binomial(n, discordance, trials)
        wins = rng.binomial(apart, 0.5)
        return -tango_low(wins, apart - wins, n)
    if n == 1:
        # A single pair shows no spread: its interval is cut to the largest difference there can be.
        return np.full(trials, max(1.0, abs(float(values[0]))))
    limits = []
    step = max(1, BLOCK // n)
    for start in range(0, trials, step):
        shape = (min(step, trials - start), n)
        sampled = values[rng.integers(0, n, shape)] * (rng.integers(0, 2, shape) * 2 - 1)
        half = t_quantile(n - 1) * sampled.std(axis=1, ddof=1) / math.sqrt(n)
        limits.append(half - sampled.mean(axis=1))
    return np.concatenate(limits)


def tango_low(wins: np.ndarray, losses: np.ndarray, n: int) -> np.ndarray:
    """Lower ends of `evaluation.statistics.tango`, for many counts (trials,) of the same number of pairs at once."""
    low, high = np.full(len(wins), -1.0), (wins - losses) / n
    for _ in range(40):
        d = (low + high) / 2
        middle = (2 * n - wins + losses) * d - wins - losses
        share = (np.sqrt(np.maximum(0.0, middle**2 + 8 * n * losses * d * (1 - d))) - middle) / (4 * n)
        score = (wins - losses - n * d) / np.sqrt(np.maximum(n * (2 * share + d * (1 - d)), 1e-300))
        outside = score > Z95
        low, high = np.where(outside, d, low), np.where(outside, high, d)
    return np.where(losses == n, -1.0, (low + high) / 2)


def margin_of(limits: np.ndarray, n: int, asked: float, comparisons: int, power: Power, name: str) -> Margin:
    """The margin to use in one of `comparisons` on `n` tasks that must all be passed.

    Raises `UserError` when the tasks do not support `asked` and the config says to refuse then.
    """
    # The next larger simulated limit, and a hair more: passing is to lie above, not at, -margin.
    needed = float(np.quantile(limits, power.equal_passes ** (1 / comparisons), method="higher")) + 1e-6
    tasks = max(1, math.ceil(n * (needed / asked) ** 2))
    if needed > asked and power.underpowered == "refuse":
        raise UserError(
            f"{name}: {n} tasks do not support a margin of {asked:g}: an equal candidate would fail too often (the "
            f"smallest supported margin is {needed:.3f})",
            f"evaluate on about {tasks} tasks, widen the margin, or set power.underpowered to widen",
        )
    used = round(max(asked, needed), 6)
    detectable = used - float(np.quantile(limits, 1 - DETECTED))
    return Margin(asked, used, round(needed, 6), round(max(detectable, 0.0), 6), tasks)


def chance_equal_passes(parts: Sequence[tuple[np.ndarray, float]]) -> float:
    """Share of simulated equal candidates that pass all comparisons (limits, margin) together."""
    passed = [limits < margin for limits, margin in parts]
    return float(np.logical_and.reduce(passed).mean()) if passed else 1.0
