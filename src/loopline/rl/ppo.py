"""Proximal policy optimization: a value network of the policy's size says how good an answer is, token by token.

    model = ActorCritic(policy, ScoreModel(load_model(path)))
    source = PPORolloutSource(model, ppo, collector, record)         # the collector's engine has model.policy
    train(model, PPO(policy_objective, ppo), source, steps, config, ctx, guards=...)

Where GRPO compares an answer with the others of its group, PPO compares each token with what the value network expected
before it (generalized advantage estimation). It learns from prompts whose rewards are all equal, at the cost of a
second model: its memory, its forward and its backward pass. Policy and value network share no weights and one
optimizer. Not covered: graders' rewards in the middle of an answer, values of truncated answers beyond their end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from loopline.model.heads import ScoreModel
from loopline.model.language_model import LanguageModel
from loopline.rl.collect import Rollout
from loopline.rl.examples import map_examples, with_extra
from loopline.rl.explain import StepFacts, explain_values
from loopline.rl.kl_reward import token_penalties
from loopline.rl.losses import gae, value_loss
from loopline.rl.ppo_config import PPOConfig
from loopline.rl.rollout import RolloutSource, Trainable
from loopline.training.batch import Batch, Example
from loopline.training.objectives import Loss, Objective


class ActorCritic(nn.Module):
    """A policy and its value network, trained together."""

    def __init__(self, policy: LanguageModel, value: ScoreModel) -> None:
        super().__init__()
        self.policy, self.value = policy, value


def score_values(model: ScoreModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """(values (M,), index (M,)): what the network expects before each id whose weight is not zero.

    The value of an id is read where its distribution is, at the id before it. `index` is its place in the flattened
    (B, T).
    """
    hidden_BTD = batch.hidden(model)
    row, column, source = batch.scored()
    values = model.score(hidden_BTD[row, source])[:, 0]
    return values, row * batch.tokens_BT.shape[1] + column


def value_examples(model: ScoreModel, examples: Sequence[Example], row_length: int, rows: int) -> list[list[float]]:
    """The network's value before each id of each example, 0.0 where its weight is 0."""
    return map_examples(model, examples, lambda batch: score_values(model, batch), row_length, rows)


def whiten(values_M: Tensor) -> Tensor:
    """The values brought to mean 0 and deviation 1."""
    return (values_M - values_M.mean()) / (values_M.std(correction=0) + 1e-8) if len(values_M) else values_M


def with_values(
    examples: Sequence[Example],
    rewards: Sequence[float],
    values: Sequence[Sequence[float]],
    config: PPOConfig,
    penalties: Sequence[Sequence[float]] | None = None,
) -> list[Example]:
    """The examples with extras "advantages", "returns" and "old_values" from the values before each of their ids.

    An answer's reward comes with the last token the policy chose; nothing is expected after it. `penalties` is what is
    taken off at each id (the KL, where it counts in the reward).
    """
    chosen = [[n for n, weight in enumerate(example.weights) if weight] for example in examples]
    owners = torch.tensor([number for number, places in enumerate(chosen) for _ in places])
    before = torch.tensor([row[n] for row, places in zip(values, chosen, strict=True) for n in places]).double()
    earned = torch.zeros_like(before)
    if penalties is not None:
        costs = [row[n] for row, places in zip(penalties, chosen, strict=True) for n in places]
        earned -= torch.tensor(costs).double()
    ends = torch.tensor([len(places) for places in chosen]).cumsum(0) - 1
    earned[ends] += torch.tensor(list(rewards)).double()
    advantages, returns = gae(earned, before, owners, config.discount, config.trace)
    if config.whiten:
        advantages = whiten(advantages)
    found = []
    for example, places, end in zip(examples, chosen, ends.tolist(), strict=True):
        part = slice(end + 1 - len(places), end + 1)
        extras = {"advantages": advantages, "returns": returns, "old_values": before}
        rows = {name: spread(len(example.tokens), places, column[part].tolist()) for name, column in extras.items()}
        found.append(with_extra(example, **rows))
    return found


def spread(length: int, places: Sequence[int], values: Sequence[float]) -> list[float]:
    """`values` at `places` of a list of zeros."""
    row = [0.0] * length
    for place, value in zip(places, values, strict=True):
        row[place] = value
    return row


class PPORolloutSource(RolloutSource):
    """Rollouts whose tokens carry advantages against the value network. Every graded answer is trained on."""

    compares = False

    def __init__(self, model: ActorCritic, ppo: PPOConfig, *arguments: Any, **options: Any) -> None:
        """What follows `ppo` is `RolloutSource`'s; its collector samples `model.policy`."""
        super().__init__(*arguments, **options)
        self.model, self.ppo = model, ppo
        self.explained = 0.0

    def _score(self, rollout: Rollout, items: list[Trainable]) -> list[Trainable]:
        items = super()._score(rollout, items)
        if not items:
            return items
        examples = [item.example for item in items]
        rewards = [rollout.groups[item.group].rewards[item.sample] for item in items]
        values = value_examples(self.model.value, examples, self.row_length, self.rows_per_batch)
        graded = [reward for reward in rewards if reward is not None]
        assert len(graded) == len(examples), "a sample that could not be graded has no example"
        penalties = None
        if self.config.kl_coefficient and self.config.kl_in == "reward":
            penalties = [token_penalties(example, self.config.kl_coefficient) for example in examples]
        examples = with_values(examples, graded, values, self.ppo, penalties)
        self.explained = explained_variance(examples, values)
        return [replace(item, example=example) for item, example in zip(items, examples, strict=True)]

    def metrics(self) -> dict[str, float]:
        return {**super().metrics(), "value_explained": self.explained}

    def _sentence(self, facts: StepFacts) -> str:
        return explain_values(facts, self.explained)


def explained_variance(examples: Sequence[Example], values: Sequence[Sequence[float]]) -> float:
    """1 - var(return - value) / var(return) over the tokens with a weight; 0 when all returns are equal."""
    pairs = [
        (returned, value)
        for example, row in zip(examples, values, strict=True)
        for weight, returned, value in zip(example.weights, example.extras["returns"], row, strict=True)
        if weight
    ]

    def variance(numbers: list[float]) -> float:
        mean = math.fsum(numbers) / len(numbers)
        return math.fsum((number - mean) ** 2 for number in numbers) / len(numbers)

    total = variance([returned for returned, _ in pairs])
    return 1 - variance([returned - value for returned, value in pairs]) / total if total > 1e-12 else 0.0


class PPO:
    """The policy's clipped loss, and the value network's clipped squared error."""

    def __init__(self, policy: Objective, config: PPOConfig) -> None:
        """`policy` is the policy's objective, which reads the batch's advantages whoever computed them."""
        self.policy, self.config = policy, config

    def loss(self, model: ActorCritic, batch: Batch) -> Loss:
        total, normalizer, metrics = self.policy.loss(model.policy, batch)
        values, index = score_values(model.value, batch)
        assert batch.weights_BT is not None
        weights = batch.weights_BT.reshape(-1)[index]
        losses = value_loss(
            values,
            batch.extras["old_values"].reshape(-1)[index],
            batch.extras["returns"].reshape(-1)[index],
            self.config.value_clip,
        )
        error = (losses * weights).sum()
        metrics = {**metrics, "value_loss": float(error.detach()) / max(normalizer, 1e-9)}
        return total + self.config.value_coefficient * error, normalizer, metrics
