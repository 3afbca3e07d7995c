"""Collect: attempts -> rewards -> advantages, one rollout at a time.

    collector = Collector(engine, tasks_by_set, shares, graders, reward, config, rollout, seed)
    rollout, memory = collector.collect(number=3, version=3, memory=Memory())

What a rollout holds depends on the weights, the seed, its number and the memory of those before, never on time. With
dynamic sampling (DAPO, arXiv:2503.14476, section 3.2) further rounds of prompts are asked, at most
`config.dynamic_sampling`, until enough groups differ within themselves. Not covered: what the loss sees of a rollout
(see `rl.rollout`), when it is collected (see `rl.rollout_queue`), several turns with tools (see `agents`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from loopline.attempts.ask import ask, seed_of
from loopline.attempts.attempt import Attempt
from loopline.grading.graders import GraderSet
from loopline.grading.reward import RewardConfig, compute_rewards, length_budget, shape_by_length
from loopline.inference.engine import Sampling, TorchEngine
from loopline.rl.advantage import batch_advantages, flat
from loopline.rl.config import PolicyGradientConfig
from loopline.rl.group import Group, pack_group, tokens_of, unpack_group
from loopline.rl.mismatch import Mismatch, measure_mismatch
from loopline.rl.rollout_config import RolloutConfig
from loopline.rl.thinking import thinking_switches
from loopline.tasks.task import Task
from loopline.training.sources import set_indices


@dataclass(frozen=True)
class Memory:
    """What later rollouts must know of earlier ones."""

    following: int = 0
    """Number of the rollout that comes next, if none is left out."""
    round: int = 0
    """Rounds of prompts asked so far."""
    asked: int = 0
    """Prompts asked so far."""
    budgets: dict[str, int] = field(default_factory=dict)
    """Task -> token budget, once known."""


@dataclass(frozen=True)
class Rollout:
    """Everything sampled for one or several updates."""

    number: int
    version: int
    """Version of the weights that sampled it."""
    groups: list[Group]
    """Every group, in the order they were asked."""
    kept: list[int]
    """Which groups are trained on."""
    rounds: int
    """Rounds of prompts that were needed."""
    mismatch: Mismatch
    """Sampler against trainer at these weights."""
    seconds: float = 0.0
    """Time it took; no part of what is trained."""

    @property
    def trained(self) -> list[Group]:
        """The groups that are trained on."""
        return [self.groups[number] for number in self.kept]

    @property
    def tokens(self) -> int:
        return tokens_of(self.groups)


@dataclass(frozen=True)
class Prompt:
    """A task of a round, and how it is asked."""

    task: Task
    seed: int
    thinking: bool


class Collector:
    """Collects rollouts from an engine's weights."""

    def __init__(
        self,
        engine: TorchEngine,
        tasks_by_set: Mapping[str, Sequence[Task]],
        shares: Mapping[str, float],
        graders: GraderSet,
        reward: RewardConfig,
        config: PolicyGradientConfig,
        rollout: RolloutConfig,
        seed: int,
    ) -> None:
        self.engine, self.tasks, self.shares = engine, tasks_by_set, shares
        self.graders, self.reward, self.config, self.rollout, self.seed = graders, reward, config, rollout, seed

    def collect(self, number: int, version: int, memory: Memory) -> tuple[Rollout, Memory]:
        """Rollout `number` from the engine's weights, called `version`, and the memory for the next one."""
        began = time.monotonic()
        self.engine.version = version
        # A run that was rewound goes on with prompts it has not asked yet.
        left_out = max(0, number - memory.following)
        memory = replace(memory, round=memory.round + left_out)
        groups: list[Group] = []
        rounds = 0
        while True:
            prompts = self._prompts(number, memory, len(groups))
            attempts = self._attempts(prompts)
            rewards, budgets = self._rewards(attempts, number, memory.budgets)
            groups += [Group(group, earned) for group, earned in zip(attempts, rewards, strict=True)]
            memory = replace(memory, round=memory.round + 1, asked=memory.asked + len(prompts), budgets=budgets)
            rounds += 1
            if rounds > self.config.dynamic_sampling or self._enough(groups):
                break
        groups = with_advantages(groups, self.config)
        kept = [i for i, group in enumerate(groups) if group.has_signal or not self.config.drop_zero_signal]
        if self.config.dynamic_sampling:
            kept = kept[: self.config.prompts_per_step]
        mismatch = measure_mismatch(self.engine.model, groups, self.config, self.rollout.mismatch_samples)
        seconds = time.monotonic() - began
        done = Rollout(number, version, groups, kept, rounds, mismatch, seconds)
        return done, replace(memory, following=number + 1)

    def _enough(self, groups: Sequence[Group]) -> bool:
        return sum(differs(group.rewards) for group in groups) >= self.config.prompts_per_step

    def _prompts(self, number: int, memory: Memory, before: int) -> list[Prompt]:
        """The prompts of the next round, `before` of which were asked in this rollout already."""
        sizes = {task_set: len(tasks) for task_set, tasks in self.tasks.items()}
        chosen = set_indices(sizes, self.shares, self.config.prompts_per_step, memory.round, self.seed)
        tasks = [self.tasks[task_set][index] for task_set, index in chosen]
        switches = thinking_switches(len(tasks), self.rollout.no_think_share, memory.asked)
        return [
            Prompt(task, seed_of(self.seed, number, before + place, task.id), thinking)
            for place, (task, thinking) in enumerate(zip(tasks, switches, strict=True))
        ]

    def _attempts(self, prompts: Sequence[Prompt]) -> list[list[Attempt]]:
        """`group_size` graded attempts at each prompt."""
        config = self.config
        sampling = Sampling(
            config.max_new_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=config.top_k,
            keep_sets=config.top_p < 1 or config.top_k > 0,
            n=config.group_size,
            thinking_budget=self.rollout.thinking_budget,
        )
        return ask(
            self.engine,
            [prompt.task for prompt in prompts],
            sampling,
            graders=self.graders,
            also=self.reward.graders,
            seeds=[prompt.seed for prompt in prompts],
            thinking=[prompt.thinking for prompt in prompts],
        )

    def _rewards(
        self, groups: Sequence[Sequence[Attempt]], number: int, budgets: Mapping[str, int]
    ) -> tuple[list[list[float | None]], dict[str, int]]:
        """The reward of each attempt, and the token budgets of all prompts seen so far."""
        known, rewards = dict(budgets), []
        for group in groups:
            task = group[0].task.id
            scores = [attempt.score for attempt in group]
            lengths = [len(attempt.completion.token_ids) for attempt in group]
            budget = known.get(task)
            if self.reward.length.toggle.every and task not in known:
                found = length_budget(self.reward.length.toggle, scores, lengths)
                if found is not None:
                    # It holds from the next time the prompt is asked.
                    known[task] = found
            earned = reward_attempts(self.reward, group)
            rewards.append(shape_by_length(self.reward.length, earned, scores, lengths, number, budget))
        return rewards, known


def differs(rewards: Sequence[float | None]) -> bool:
    """Whether a group's rewards carry a signal."""
    return not flat([reward for reward in rewards if reward is not None])


def with_advantages(groups: Sequence[Group], config: PolicyGradientConfig) -> list[Group]:
    """The groups, each attempt compared with the others of its group."""
    rewards = [group.rewards for group in groups]
    found = batch_advantages(rewards, config.scale_rewards, baseline=config.baseline)
    return [replace(group, advantages=advantages) for group, advantages in zip(groups, found, strict=True)]


def reward_attempts(reward: RewardConfig, attempts: Sequence[Attempt]) -> list[float | None]:
    """The reward of each attempt of a group."""
    return compute_rewards(
        reward,
        [attempt.as_sample() for attempt in attempts],
        [attempt.grade for attempt in attempts if attempt.grade is not None],
        [len(attempt.completion.token_ids) for attempt in attempts],
        {name: [attempt.components[name] for attempt in attempts] for name in reward.graders},
    )


def pack_rollout(rollout: Rollout) -> dict[str, Any]:
    """A rollout as plain values for the training state."""
    return {
        "number": rollout.number,
        "version": rollout.version,
        "groups": [pack_group(group) for group in rollout.groups],
        "kept": list(rollout.kept),
        "rounds": rollout.rounds,
        "mismatch": asdict(rollout.mismatch),
        "seconds": rollout.seconds,
    }


def unpack_rollout(row: Mapping[str, Any]) -> Rollout:
    """The rollout that `pack_rollout` wrote."""
    return Rollout(
        number=row["number"],
        version=row["version"],
        groups=[unpack_group(group) for group in row["groups"]],
        kept=list(row["kept"]),
        rounds=row["rounds"],
        mismatch=Mismatch(**row["mismatch"]),
        seconds=row["seconds"],
    )
