"""The KL to the reference as a part of the reward, as RLOO and PPO were published with it.

    examples = penalize(rewards, examples, config)     # advantages of what is left of each reward
    per_token = token_penalties(example, config.kl_coefficient)

A sample's penalty is `kl_coefficient` times the sum over its tokens of log pi_old - log pi_reference, the estimate k1
at the policy that sampled (arXiv:2402.14740, eq. 3); a value network sees it token by token. Which groups carry a
signal is decided before, by the graders' rewards: where all are equal, penalties differ nevertheless. Not
covered: the KL as a term of the loss (see `rl.losses`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from loopline.rl.advantage import batch_advantages
from loopline.rl.config import PolicyGradientConfig
from loopline.rl.examples import with_extra
from loopline.training.batch import Example

Place = tuple[int, int]
"""Number of a group in its rollout, and of a sample in the group."""


def token_penalties(example: Example, coefficient: float) -> list[float]:
    """The penalty of each token; 0 for those that the policy did not choose.

    `example` carries extras "old_logprobs" and "reference_logprobs".
    """
    old, reference = example.extras["old_logprobs"], example.extras["reference_logprobs"]
    return [
        coefficient * (mine - other) if weight else 0.0
        for weight, mine, other in zip(example.weights, old, reference, strict=True)
    ]


def penalized_advantages(
    rewards: Sequence[Sequence[float | None]], penalties: Mapping[Place, float], config: PolicyGradientConfig
) -> dict[Place, float]:
    """The advantage of every sample with a penalty, from the rewards of each group.

    Groups without a penalty count for nothing; a sample without one (not graded, or nothing in it was chosen) counts
    like one without a reward.
    """
    places = sorted({group for group, _ in penalties})
    left: list[list[float | None]] = [
        [
            None if reward is None or (place, number) not in penalties else reward - penalties[place, number]
            for number, reward in enumerate(rewards[place])
        ]
        for place in places
    ]
    found = batch_advantages(left, config.scale_rewards, baseline=config.baseline)
    return {
        (place, number): advantage
        for place, advantages in zip(places, found, strict=True)
        for number, advantage in enumerate(advantages)
        if advantage is not None
    }


def penalize(
    rewards: Sequence[Sequence[float | None]], examples: Mapping[Place, Example], config: PolicyGradientConfig
) -> dict[Place, Example]:
    """The examples with the advantages of their penalized rewards."""
    weight = config.kl_coefficient
    penalties = {place: math.fsum(token_penalties(example, weight)) for place, example in examples.items()}
    advantages = penalized_advantages(rewards, penalties, config)
    return {
        place: with_extra(example, advantages=[advantages[place] if w else 0.0 for w in example.weights])
        for place, example in examples.items()
    }
