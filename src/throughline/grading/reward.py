"""Rewards: grader scores, weighted, with penalties for length, repetition and flagged conduct.

    rewards = compute_rewards(config, samples, grades, lengths)

A reward is what pushes the policy, so it may differ from the score that reports quality. None means excluded: the
sample could not be graded and must count neither for nor against the policy. Overlong outputs follow DAPO's soft
punishment (Yu et al. 2025, arXiv:2503.14476, equation 13). Not covered: advantages (see `rl`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from pydantic import Field, model_validator

from throughline.base.config import Config
from throughline.grading.grade import Grade, Sample
from throughline.grading.graders import GraderSet

OWN_COMPONENTS = ("outcome", "steps")


class RewardConfig(Config):
    """What the reward is made of."""

    weights: dict[str, float] = {"outcome": 1.0}
    """Component -> weight. "outcome" is the task's own grade, "steps" the mean of its step scores, any other name a
    grader of the set."""
    overlong_from: int | None = Field(default=None, ge=1)
    """Tokens from which the length penalty starts; None leaves it out."""
    overlong_to: int | None = Field(default=None, ge=2)
    """Tokens at which the length penalty is full."""
    overlong_penalty: float = Field(default=1.0, ge=0)
    """The full length penalty."""
    repetition_penalty: float = Field(default=0.0, ge=0)
    """Taken off times the share of repeated word 4-grams."""
    flag_penalties: dict[str, float] = {}
    """Flag -> penalty; a name that ends with * stands for every flag with that beginning, as in "hack_*"."""

    @model_validator(mode="after")
    def _consistent(self) -> RewardConfig:
        if not any(self.weights.values()):
            raise ValueError("weights has no component with a weight: write for example {outcome: 1.0}")
        if (self.overlong_from is None) != (self.overlong_to is None):
            raise ValueError("give both overlong_from and overlong_to, or neither")
        if self.overlong_from is not None and self.overlong_to is not None and self.overlong_to <= self.overlong_from:
            raise ValueError("overlong_to must be larger than overlong_from")
        return self

    @property
    def graders(self) -> tuple[str, ...]:
        """Components that are graders of the set."""
        return tuple(name for name, weight in self.weights.items() if weight and name not in OWN_COMPONENTS)


def grade_components(config: RewardConfig, graders: GraderSet, samples: Sequence[Sample]) -> dict[str, list[Grade]]:
    """Grades of every component that is a grader of the set."""
    return {name: graders.grade(samples, name) for name in config.graders}


def compute_rewards(
    config: RewardConfig,
    samples: Sequence[Sample],
    grades: Sequence[Grade],
    lengths: Sequence[int],
    components: Mapping[str, Sequence[Grade]] | None = None,
) -> list[float | None]:
    """One reward per sample; None where a weighted component could not be graded.

    `grades` are the tasks' own, `lengths` the sampled tokens, `components` what `grade_components` gave. Raises
    `KeyError` when a weighted grader is missing from `components`.
    """
    rewards: list[float | None] = []
    for number, (sample, grade, length) in enumerate(zip(samples, grades, lengths, strict=True)):
        scores: list[tuple[float, float | None]] = []
        for name, weight in config.weights.items():
            if not weight:
                continue
            if name == "outcome":
                scores.append((weight, grade.score))
            elif name == "steps":
                share = sum(grade.steps) / len(grade.steps) if grade.steps else 0.0
                scores.append((weight, None if grade.score is None else share))
            else:
                scores.append((weight, (components or {})[name][number].score))
        if any(score is None for _, score in scores):
            rewards.append(None)
            continue
        reward = sum(weight * score for weight, score in scores if score is not None)
        reward -= config.repetition_penalty * repetition(sample.text) if config.repetition_penalty else 0.0
        reward -= config.overlong_penalty * overlong_share(config, length)
        rewards.append(reward - flag_penalty(config.flag_penalties, grade.flags))
    return rewards


def overlong_share(config: RewardConfig, length: int) -> float:
    """0 up to `overlong_from` tokens, 1 from `overlong_to` on, straight in between."""
    if config.overlong_from is None or config.overlong_to is None:
        return 0.0
    return min(1.0, max(0.0, (length - config.overlong_from) / (config.overlong_to - config.overlong_from)))


def repetition(text: str, n: int = 4) -> float:
    """Share of word n-grams that repeat an earlier one, in [0, 1)."""
    words = re.findall(r"\w+", text.lower())
    grams = Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))
    return 1 - len(grams) / grams.total() if grams else 0.0


def flag_penalty(penalties: Mapping[str, float], flags: Sequence[str]) -> float:
    """Sum of the penalties that the flags incur, each penalty once."""
    return sum(
        penalty
        for name, penalty in penalties.items()
        if any(flag.startswith(name[:-1]) if name.endswith("*") else flag == name for flag in flags)
    )
