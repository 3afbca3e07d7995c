"""Advantages of a group: how much better each sample is than the others of its group.

    group_advantages([1.0, 0.0, None, 1.0])
    batch_advantages([[1.0, 0.0], [0.5, 0.5]], scale="batch")

A reward of None (could not be graded) has no advantage and does not move its group's mean or deviation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Baseline = Literal["mean", "leave_one_out", "none"]

RELATIVE_FLOOR = 1e-6
"""Deviations below this share of the rewards' size are rounding residue, not signal, and count as zero."""


def group_advantages(
    rewards: Sequence[float | None],
    scale: Literal["group", "none"] = "group",
    epsilon: float = 1e-4,
    baseline: Baseline = "mean",
) -> list[float | None]:
    """(r - b) / (std + epsilon) over the graded rewards of one group, or r - b with `scale="none"`.

    The baseline b is the group's mean or the mean of the other samples (RLOO, arXiv:2402.14740); without one the
    rewards are the advantages, unscaled. The deviation is the sample deviation (n - 1), computed from centred values
    (arXiv:2402.03300, section 4.1). Against a baseline, equal rewards and a single graded one give exactly zero.
    """
    graded = _graded(rewards)
    if baseline == "none" or not graded:
        return list(rewards)
    if flat(graded):
        return [None if reward is None else 0.0 for reward in rewards]
    mean = math.fsum(graded) / len(graded)
    divisor = _deviation(graded) + epsilon if scale == "group" else 1.0
    # r_i minus the mean of the others is (r_i - mean) n / (n - 1).
    spread = len(graded) / (len(graded) - 1) if baseline == "leave_one_out" else 1.0
    return [None if reward is None else (reward - mean) / divisor * spread for reward in rewards]


def batch_advantages(
    groups: Sequence[Sequence[float | None]],
    scale: Literal["group", "batch", "none"] = "group",
    epsilon: float = 1e-4,
    baseline: Baseline = "mean",
) -> list[list[float | None]]:
    """`group_advantages` of several groups; `scale="batch"` divides by the deviation of all their rewards together.

    That deviation is of the raw rewards, between groups as well as within (arXiv:2508.08221, section 4.1).
    """
    if scale != "batch":
        return [group_advantages(rewards, scale, epsilon, baseline) for rewards in groups]
    centred = [group_advantages(rewards, "none", epsilon, baseline) for rewards in groups]
    graded = [reward for rewards in groups for reward in _graded(rewards)]
    if flat(graded):
        return centred
    divisor = _deviation(graded) + epsilon
    return [[None if value is None else value / divisor for value in values] for values in centred]


def flat(graded: Sequence[float]) -> bool:
    """Whether rewards are equal but for rounding."""
    return not graded or max(graded) - min(graded) <= RELATIVE_FLOOR * max(abs(reward) for reward in graded)


def _graded(rewards: Sequence[float | None]) -> list[float]:
    graded = [reward for reward in rewards if reward is not None]
    if any(not math.isfinite(reward) for reward in graded):
        raise ValueError(f"rewards must be finite or None, not {graded}")
    return graded


def _deviation(graded: Sequence[float]) -> float:
    """Sample deviation from centred values: the difference of mean squares would leave a residue."""
    mean = math.fsum(graded) / len(graded)
    return math.sqrt(math.fsum((reward - mean) ** 2 for reward in graded) / (len(graded) - 1))
