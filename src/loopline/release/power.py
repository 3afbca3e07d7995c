"""What a non-inferiority comparison can tell with the tasks it has.

    power = Power...                                     # see release.config
    limit = effective_margin(differences, 0.06, comparisons=6, config.power, "math")
    chance_equal_passes([(differences, limit.used)], trials=2000, seed=0)

A comparison passes when the lower end of the 95% interval of candidate minus reference lies above -margin. With few or
noisy tasks an equal candidate fails that by chance: `needed` is the margin at which it passes often enough,
`detectable` the smallest true loss that is blocked four times out of five. Normal approximation, with one
pseudo-observation of each sign where scores lie in [0, 1] (Agresti and Min 2005), so that a few equal outcomes are not
taken for certainty. Not covered: the test itself (see `evaluation.statistics`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from loopline.base.errors import UserError
from loopline.evaluation.statistics import Z95
from loopline.release.config import Power

DETECTED = 0.8
"""Chance with which a loss of size `detectable` is blocked."""
CHUNK = 2_000_000


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
    """Tasks with which the asked margin would be supported."""

    @property
    def widened(self) -> bool:
        return self.used > self.asked


def standard_error(differences: Sequence[float], bounded: bool = True) -> float:
    """Standard error of the mean of paired differences if the two sides were equal; `bounded` for scores in [0, 1]."""
    values = np.asarray(differences, dtype=float)
    pseudo = 1.0 if bounded else 0.0
    count = len(values) + 2 * pseudo
    return math.sqrt((float(np.sum(values**2)) + pseudo) / count / count)


def effective_margin(
    differences: Sequence[float], asked: float, comparisons: int, power: Power, name: str, bounded: bool = True
) -> Margin:
    """The margin to use in one of `comparisons` that must all be passed.

    Raises `UserError` when the tasks do not support `asked` and the config says to refuse then.
    """
    error = standard_error(differences, bounded)
    normal = NormalDist()
    needed = (Z95 + normal.inv_cdf(power.equal_passes ** (1 / comparisons))) * error
    tasks = math.ceil(len(differences) * (needed / asked) ** 2)
    if needed > asked and power.underpowered == "refuse":
        raise UserError(
            f"{name}: {len(differences)} tasks do not support a margin of {asked:g}: an equal candidate would fail too "
            f"often (the smallest supported margin is {needed:.3f})",
            f"evaluate on about {tasks} tasks, widen the margin, or set power.underpowered to widen",
        )
    used = max(asked, needed)
    detectable = used + (normal.inv_cdf(DETECTED) - Z95) * error
    return Margin(asked, used, round(needed, 6), round(max(detectable, 0.0), 6), max(tasks, 1))


def equal_passes(differences: Sequence[float], margin: float, trials: int, seed: int) -> np.ndarray:
    """Whether each of `trials` simulated equal candidates passes: differences drawn anew, with random signs."""
    values = np.asarray(differences, dtype=float)
    rng = np.random.default_rng(seed)
    count, step = len(values), max(1, CHUNK // max(1, len(values)))
    passed = []
    for start in range(0, trials, step):
        shape = (min(step, trials - start), count)
        drawn = values[rng.integers(0, count, shape)] * (rng.integers(0, 2, shape) * 2 - 1)
        low = drawn.mean(axis=1) - Z95 * drawn.std(axis=1) / math.sqrt(count)
        passed.append(low > -margin)
    return np.concatenate(passed)


def chance_equal_passes(parts: Sequence[tuple[Sequence[float], float]], trials: int, seed: int) -> float:
    """Share of simulated equal candidates that pass all comparisons (differences, margin) together."""
    passed = np.ones(trials, dtype=bool)
    for number, (differences, margin) in enumerate(parts):
        passed &= equal_passes(differences, margin, trials, seed + number)
    return float(passed.mean())
