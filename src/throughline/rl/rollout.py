"""Rollouts as a batch source: sample groups, grade, reward, compare, pack.

`RolloutSource` hands the training loop micro-batches sampled from the very model being trained. What it samples at a
step depends only on the weights, the seed and the step, so a resumed run repeats it. Not covered: multi-turn
rollouts in an environment (see `harness`), several updates per rollout, sampling while training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from throughline.base.files import read_jsonl, write_jsonl
from throughline.grading.grade import Grade, Sample
from throughline.grading.graders import GraderSet
from throughline.grading.reward import RewardConfig, compute_rewards, grade_components
from throughline.grading.tasks import Task
from throughline.inference.engine import Completion, Sampling, TorchEngine
from throughline.rl.advantage import group_advantages
from throughline.rl.config import PolicyGradientConfig
from throughline.rl.explain import StepFacts, explain
from throughline.training.batch import Batch, Example, pack
from throughline.training.sources import family_indices


@dataclass(frozen=True)
class Group:
    """One prompt's samples with their grades, rewards and advantages."""

    task: Task
    prompt: list[int]
    completions: list[Completion]
    texts: list[str]
    grades: list[Grade]
    rewards: list[float | None]
    advantages: list[float | None]

    @property
    def has_signal(self) -> bool:
        return any(advantage for advantage in self.advantages if advantage is not None)


def seed_of(*parts: object) -> int:
    """A 63-bit seed from anything with a stable text form."""
    return int.from_bytes(hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()[:8], "big") >> 1


def answer_text(engine: TorchEngine, completion: Completion) -> str:
    """The assistant's text, without the closing mark."""
    ids = completion.token_ids[:-1] if completion.finish == "stop" else completion.token_ids
    return engine.tokenizer.decode(ids)


def sample_groups(
    engine: TorchEngine,
    tasks: Sequence[Task],
    graders: GraderSet,
    reward: RewardConfig,
    config: PolicyGradientConfig,
    seeds: Sequence[int],
) -> list[Group]:
    """Sample, grade and compare `config.group_size` answers to each task, all at once."""
    prompts = [engine.tokenizer.render(task.messages, add_generation_prompt=True) for task in tasks]
    sampling = Sampling(config.max_new_tokens, temperature=config.temperature, n=config.group_size)
    sampled = engine.generate(prompts, sampling, seeds)
    texts = [[answer_text(engine, completion) for completion in group] for group in sampled]
    samples = [
        Sample(task, text, completion.finish)
        for task, group, group_texts in zip(tasks, sampled, texts, strict=True)
        for completion, text in zip(group, group_texts, strict=True)
    ]
    grades = graders.grade(samples)
    lengths = [len(completion.token_ids) for group in sampled for completion in group]
    rewards = compute_rewards(reward, samples, grades, lengths, grade_components(reward, graders, samples))
    groups = []
    for number, task in enumerate(tasks):
        part = slice(number * config.group_size, (number + 1) * config.group_size)
        advantages = group_advantages(rewards[part], config.scale_rewards)
        groups.append(
            Group(task, prompts[number], sampled[number], texts[number], grades[part], rewards[part], advantages)
        )
    return groups


def build_examples(groups: Sequence[Group], config: PolicyGradientConfig) -> list[Example]:
    """What the loss sees: sampled tokens only, each with its sample's advantage and its log-prob when sampled.

    A dropped group leaves numerator and token count alike; a masked truncated sample likewise.
    """
    examples = []
    for group in groups:
        if config.drop_zero_signal and not group.has_signal:
            continue
        for completion, advantage in zip(group.completions, group.advantages, strict=True):
            if advantage is None or (config.mask_truncated and completion.finish == "length"):
                continue
            count = len(completion.token_ids)
            weight, normalizer = {
                "token": (1.0, float(count)),
                "sequence": (1.0 / count, 1.0),
                "constant": (1.0, float(config.max_new_tokens)),
            }[config.normalizer]
            silent = [0.0] * len(group.prompt)
            examples.append(
                Example(
                    tokens=[*group.prompt, *completion.token_ids],
                    weights=[*silent, *[weight] * count],
                    extras={
                        "advantages": [*silent, *[advantage] * count],
                        "old_logprobs": [*silent, *completion.logprobs],
                    },
                    scalars={"normalizer": normalizer},
                )
            )
    return examples


class RolloutSource:
    """Micro-batches of each step, sampled from the model being trained."""

    def __init__(
        self,
        engine: TorchEngine,
        tasks_by_family: Mapping[str, Sequence[Task]],
        shares: Mapping[str, float],
        graders: GraderSet,
        reward: RewardConfig,
        config: PolicyGradientConfig,
        seed: int,
        record: Path,
        row_length: int = 256,
        rows_per_batch: int = 32,
    ) -> None:
        self.engine, self.tasks, self.shares = engine, tasks_by_family, shares
        self.graders, self.reward, self.config, self.seed = graders, reward, config, seed
        self.record, self.row_length, self.rows_per_batch = record, row_length, rows_per_batch
        self.facts = StepFacts()

    def next(self, step: int) -> Sequence[Batch]:
        self.engine.version = step
        sizes = {family: len(tasks) for family, tasks in self.tasks.items()}
        chosen = family_indices(sizes, self.shares, self.config.prompts_per_step, step, self.seed)
        tasks = [self.tasks[family][index] for family, index in chosen]
        seeds = [seed_of(self.seed, step, number, task.id) for number, task in enumerate(tasks)]
        groups = sample_groups(self.engine, tasks, self.graders, self.reward, self.config, seeds)
        write_jsonl(self.record / f"{step:06d}.jsonl", (row_of(step, group) for group in groups))
        self.facts = StepFacts.of(groups)
        examples = build_examples(groups, self.config)
        # A long prompt with a long answer gets the longer rows it needs.
        row_length = max([self.row_length, *(len(example.tokens) for example in examples)])
        return pack(examples, row_length, self.rows_per_batch) if examples else []

    def metrics(self) -> dict[str, float]:
        return self.facts.metrics()

    def why(self) -> str:
        """One sentence on what the last step could learn from."""
        return explain(self.facts)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        del state


def row_of(step: int, group: Group) -> dict[str, Any]:
    """A group as one line of `rollouts.jsonl`."""
    return {
        "step": step,
        "task": group.task.id,
        "family": group.task.family,
        "prompt": group.task.messages[-1]["content"],
        "messages": list(group.task.messages),
        "outputs": [
            {
                "text": text,
                "score": grade.score,
                "reward": reward,
                "flags": list(grade.flags),
                "finish": completion.finish,
                "tokens": len(completion.token_ids),
            }
            for text, grade, reward, completion in zip(
                group.texts, group.grades, group.rewards, group.completions, strict=True
            )
        ],
    }


def gather_records(record: Path, steps: int) -> list[dict[str, Any]]:
    """Every line of the steps below `steps`, in order; leftovers of later steps are ignored."""
    return [row for step in range(steps) for row in read_jsonl(record / f"{step:06d}.jsonl")]
