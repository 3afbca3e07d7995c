"""Advantages of a group: how much better each sample is than its siblings.

    group_advantages([1.0, 0.0, None, 1.0])

A reward of None (could not be graded) has no advantage and does not move its siblings' mean or deviation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

RELATIVE_FLOOR = 1e-6
"""Deviations below this share of the rewards' size are rounding residue, not signal, and count as zero."""


def group_advantages(
    rewards: Sequence[float | None], scale: Literal["group", "none"] = "group", epsilon: float = 1e-4
) -> list[float | None]:
    """(r - mean) / (std + epsilon) over the graded rewards of one group, or r - mean with `scale="none"`.

    The deviation is the sample deviation (n - 1), computed from centred values (arXiv:2402.03300, section 4.1). Equal
    rewards, and a single graded one, give exactly zero.
    """
    graded = [reward for reward in rewards if reward is not None]
    if any(not math.isfinite(reward) for reward in graded):
        raise ValueError(f"rewards must be finite or None, not {graded}")
    if not graded:
        return [None] * len(rewards)
    mean = math.fsum(graded) / len(graded)
    size = max(abs(reward) for reward in graded)
    if max(graded) - min(graded) <= RELATIVE_FLOOR * size:
        return [None if reward is None else 0.0 for reward in rewards]
    deviation = math.sqrt(math.fsum((reward - mean) ** 2 for reward in graded) / (len(graded) - 1))
    divisor = deviation + epsilon if scale == "group" else 1.0
    return [None if reward is None else (reward - mean) / divisor for reward in rewards]
