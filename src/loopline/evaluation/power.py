"""What a comparison of a given size can find: minimal detectable difference, power, items needed.

    detectable = detectable_difference(wins, losses, n, alpha)          # scores of 0 and 1, McNemar's exact test
    detectable = detectable_by_error(error, alpha)                      # other scores: from the standard error

A difference is detectable when a true one of that size would be found in 80 of 100 repetitions. Both read the noise
from the data at hand, never the observed difference: "power for the observed difference" is the p-value in other words
(Hoenig and Heisey 2001). Not covered: designs other than two systems on the same items.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

POWER = 0.8
"""Share of repetitions in which a detectable difference is found."""
EXACT_ITEMS = 4000
"""Items up to which the power of the exact test is summed; beyond, the normal approximation agrees to 2%."""


def mcnemar_power(difference: float, discordance: float, n: int, alpha: float = 0.05) -> float:
    """Chance that McNemar's exact test on `n` pairs finds a true `difference` (> 0) in its direction.

    `discordance` is the share of items on which the two systems differ; at least `difference`. Exact: a sum over the
    number m of discordant pairs, of which wins are Binomial(m, (1 + difference / discordance) / 2). Numbers m beyond
    six standard deviations are left out.
    """
    discordance = min(1.0, max(discordance, difference))
    if discordance <= 0 or n < 1:
        return 0.0
    centre, spread = n * discordance, 6 * math.sqrt(n * discordance * (1 - discordance)) + 6
    totals = np.arange(max(1, math.floor(centre - spread)), min(n, math.ceil(centre + spread)) + 1)
    factorial = _log_factorials(n)
    wins = np.arange(int(totals[-1]) + 1)
    # Cells above the diagonal (wins > total) do not exist; their index is clipped and their probability set to 0.
    losses = totals[:, None] - wins[None, :]
    real = losses >= 0
    ways = factorial[totals][:, None] - factorial[wins][None, :] - factorial[np.maximum(losses, 0)]
    under_null = np.where(real, np.exp(ways - totals[:, None] * math.log(2)), 0.0)
    # P(X >= w) under the null, for every total: the test finds `a` better where twice that is below alpha.
    tails = np.cumsum(under_null[:, ::-1], axis=1)[:, ::-1]
    found = real & (2 * tails < alpha) & (2 * wins[None, :] > totals[:, None])
    share = (1 + difference / discordance) / 2
    chance = np.where(losses == 0, ways, -math.inf)
    if share < 1:
        chance = ways + wins[None, :] * math.log(share) + losses * math.log(1 - share)
    given_total = np.where(found, np.exp(np.where(real, chance, -math.inf)), 0.0).sum(axis=1)
    rest = n - totals
    weight = factorial[n] - factorial[totals] - factorial[rest] + totals * math.log(discordance)
    weight = weight + (rest * math.log(1 - discordance) if discordance < 1 else np.where(rest == 0, 0.0, -math.inf))
    return float((np.exp(weight) * given_total).sum())


def detectable_difference(wins: int, losses: int, n: int, alpha: float = 0.05) -> float | None:
    """Smallest true difference that McNemar's exact test finds with 80% power, given how often the systems differ.

    The share of discordant items is taken from the data, with one more of each kind so that it is never 0. None when
    not even a difference of 1 would be found.
    """
    discordance = (wins + losses + 1) / (n + 2)
    if n > EXACT_ITEMS:
        return detectable_by_error(math.sqrt(discordance / n), alpha)
    if mcnemar_power(1.0, discordance, n, alpha) < POWER:
        return None
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if mcnemar_power(middle, discordance, n, alpha) >= POWER else (middle, high)
    return high


def detectable_by_error(error: float, alpha: float = 0.05) -> float | None:
    """Smallest true difference found with 80% power by a test whose statistic has standard error `error`.

    None when the data show no spread (then they say nothing about noise) or there is a single cluster.
    """
    if not 0 < error < math.inf:
        return None
    normal = NormalDist()
    return (normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(POWER)) * error


def items_needed(difference: float, detectable: float, n: int) -> int:
    """Items that make `difference` detectable, when `n` make `detectable` so: noise falls as 1 / sqrt(n)."""
    return math.ceil(n * (detectable / abs(difference)) ** 2)


def _log_factorials(n: int) -> np.ndarray:
    """log(k!) for k from 0 to n."""
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
