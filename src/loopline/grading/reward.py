"""Rewards: grader scores, weighted, with penalties for length, repetition and flagged conduct.

    rewards = compute_rewards(config, samples, grades, lengths)

A reward is what pushes the policy, so it may differ from the score that reports quality. None means excluded: the
sample could not be graded and must count neither for nor against the policy. Overlong outputs follow DAPO's soft
punishment (Yu et al. 2025, arXiv:2503.14476, equation 13). What depends on a prompt's other samples, such as brevity
asked for only where the prompt is solved, is `shape_by_length`, over a group. Not covered: advantages (see `rl`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pydantic import Field, model_validator

from loopline.base.config import Config
from loopline.grading.grade import Grade, Sample
from loopline.text.words import ngrams, words_of

OWN_COMPONENTS = ("outcome", "steps")


class ToggleConfig(Config):
    """Phases with a token budget and phases without, in turn (Kimi K2.5, arXiv:2602.02276).

    In a phase with a budget an answer longer than its prompt's budget gets no reward, but only for prompts the policy
    solves often enough. Phases without keep the policy from forgetting how to use length where it helps.
    """

    every: int = Field(default=0, ge=0)
    """Steps of a phase, the first one with budgets; 0 leaves budgets out."""
    percentile: float = Field(default=0.7, gt=0, le=1)
    """A prompt's budget is this percentile of the lengths of its correct answers, when it first had any."""
    accuracy: float = Field(default=0.5, ge=0, le=1)
    """A prompt's budget holds only where at least this share of its answers is correct."""


class LengthConfig(Config):
    """What brevity is worth. All of it off by default."""

    cost: float = Field(default=0.0, ge=0)
    """Taken off times `length_cost`: the weight of brevity beside the other components."""
    tokens: int = Field(default=256, ge=1)
    """Unit of length: `length_cost` sees the sampled tokens divided by this."""
    rate: float = Field(default=1.0, gt=0)
    """How soon the cost bends; see `length_cost`."""
    curvature: float = Field(default=0.5, ge=0, le=1)
    """0 is a straight line, 1 a logarithm: the first tokens cost most, so long problems may still take many."""
    only_solved: bool = True
    """Scale the cost by the share of the prompt's answers that are correct: brevity counts once a prompt is solved,
    and never keeps the policy from solving it."""
    toggle: ToggleConfig = ToggleConfig()
    """Budgets in alternating phases."""


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
    """Flag -> penalty; a name that ends with * matches every flag with that beginning, as in "hack_*"."""
    length: LengthConfig = LengthConfig()
    """What brevity is worth."""

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


def compute_rewards(
    config: RewardConfig,
    samples: Sequence[Sample],
    grades: Sequence[Grade],
    lengths: Sequence[int],
    components: Mapping[str, Sequence[Grade]] | None = None,
) -> list[float | None]:
    """One reward per sample; None where a weighted component could not be graded.

    `grades` are the tasks' own, `lengths` the sampled tokens, `components` those of further graders by name. Raises
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


def shape_by_length(
    config: LengthConfig,
    rewards: Sequence[float | None],
    scores: Sequence[float | None],
    lengths: Sequence[int],
    step: int = 0,
    budget: int | None = None,
) -> list[float | None]:
    """The rewards of one prompt's answers with what their length costs.

    `scores` are the answers' own grades (1 is correct), `lengths` their sampled tokens, `budget` the prompt's, from
    `length_budget`. Rewards of None stay None.
    """
    accuracy = pass_rate(scores)
    shaped: list[float | None] = []
    for reward, length in zip(rewards, lengths, strict=True):
        if reward is None:
            shaped.append(None)
            continue
        if budget is not None and budgets_hold(config.toggle, step) and accuracy >= config.toggle.accuracy:
            reward = reward if length <= budget else min(reward, 0.0)
        if config.cost:
            scale = accuracy if config.only_solved else 1.0
            reward -= config.cost * scale * length_cost(length / config.tokens, config.rate, config.curvature)
        shaped.append(reward)
    return shaped


def length_cost(length: float, rate: float, curvature: float) -> float:
    """((1 + k x)^(1 - q) - 1) / (k (1 - q)) with rate k and curvature q; log(1 + k x) / k at q = 1.

    Zero at zero, with slope 1 there, rising, and concave for q > 0 (Composer 2, arXiv:2603.24477).
    """
    if curvature == 1:
        return math.log1p(rate * length) / rate
    return math.expm1((1 - curvature) * math.log1p(rate * length)) / (rate * (1 - curvature))


def budgets_hold(config: ToggleConfig, step: int) -> bool:
    """Whether `step` lies in a phase with budgets."""
    return config.every > 0 and step // config.every % 2 == 0


def length_budget(config: ToggleConfig, scores: Sequence[float | None], lengths: Sequence[int]) -> int | None:
    """The budget that one prompt's answers give, in tokens; None while none is correct."""
    correct = sorted(length for score, length in zip(scores, lengths, strict=True) if score == 1)
    return correct[max(0, math.ceil(config.percentile * len(correct)) - 1)] if correct else None


def pass_rate(scores: Sequence[float | None]) -> float:
    """Share of the graded answers that are correct; 0 when none could be graded."""
    graded = [score for score in scores if score is not None]
    return sum(score == 1 for score in graded) / len(graded) if graded else 0.0


def overlong_share(config: RewardConfig, length: int) -> float:
    """0 up to `overlong_from` tokens, 1 from `overlong_to` on, straight in between."""
    if config.overlong_from is None or config.overlong_to is None:
        return 0.0
    return min(1.0, max(0.0, (length - config.overlong_from) / (config.overlong_to - config.overlong_from)))


def repetition(text: str, n: int = 4) -> float:
    """Share of word n-grams that repeat an earlier one, in [0, 1)."""
    grams = ngrams(words_of(text), n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def flag_penalty(penalties: Mapping[str, float], flags: Sequence[str]) -> float:
    """Sum of the penalties that the flags incur, each penalty once."""
    return sum(
        penalty
        for name, penalty in penalties.items()
        if any(flag.startswith(name[:-1]) if name.endswith("*") else flag == name for flag in flags)
    )
