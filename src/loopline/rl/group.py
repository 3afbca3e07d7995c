"""One prompt's samples: the attempts, their rewards and their advantages.

`Group` is what rollouts are made of; `row_of` is its line in `rollouts.jsonl`; `pack_group` and `unpack_group` keep it
in a training state, so that a resumed run trains on the very samples that were there. Not covered: sampling them (see
`rl.collect`) and what the loss sees of them (see `rl.examples`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from loopline.attempts.attempt import Attempt, attempt_from_row
from loopline.grading.grade import Grade
from loopline.inference.completion import Completion
from loopline.tasks.task import Task, task_from_row


@dataclass(frozen=True)
class Group:
    """One prompt's graded attempts with their rewards and advantages."""

    attempts: list[Attempt]
    rewards: list[float | None]
    advantages: list[float | None] = field(default_factory=list)
    """Empty until the rollout's groups are complete."""

    @property
    def has_signal(self) -> bool:
        return any(advantage for advantage in self.advantages if advantage is not None)

    @property
    def task(self) -> Task:
        return self.attempts[0].task

    @property
    def prompt(self) -> tuple[int, ...]:
        """Ids of what the policy saw."""
        return self.attempts[0].prompt

    @property
    def thinking(self) -> bool:
        """Whether the prompt let it think; False where the template closed the thinking part."""
        return self.attempts[0].thinking

    @property
    def completions(self) -> list[Completion]:
        return [attempt.completion for attempt in self.attempts]

    @property
    def texts(self) -> list[str]:
        return [attempt.text for attempt in self.attempts]

    @property
    def grades(self) -> list[Grade]:
        """By the task's own grader. Raises `ValueError` for attempts that were not graded."""
        found = [attempt.grade for attempt in self.attempts if attempt.grade is not None]
        if len(found) < len(self.attempts):
            raise ValueError("a group's attempts must be graded")
        return found


def forced_tokens(completion: Completion) -> list[bool]:
    """Which tokens the engine wrote itself, such as a forced end of thinking."""
    return list(completion.forced) or [False] * len(completion.token_ids)


def row_of(step: int, group: Group) -> dict[str, Any]:
    """A group as one line of `rollouts.jsonl`."""
    return {
        "step": step,
        "task": group.task.id,
        "task_set": group.task.task_set,
        "prompt": group.task.messages[-1]["content"],
        "messages": list(group.task.messages),
        **({} if group.thinking else {"thinking": False}),
        "outputs": [
            {
                "text": attempt.text,
                "score": attempt.score,
                "reward": reward,
                "flags": list(grade.flags),
                "finish": attempt.completion.finish,
                "tokens": attempt.tokens,
            }
            for attempt, grade, reward in zip(group.attempts, group.grades, group.rewards, strict=True)
        ],
    }


def pack_group(group: Group) -> dict[str, Any]:
    """A group as plain values, floats exact."""
    return {
        "task": group.task.model_dump(mode="json"),
        "attempts": [attempt.to_row(tokens=True) for attempt in group.attempts],
        "rewards": list(group.rewards),
        "advantages": list(group.advantages),
    }


def unpack_group(row: dict[str, Any]) -> Group:
    """The group that `pack_group` wrote."""
    task = task_from_row(row["task"], "a rollout in the training state")
    attempts = [attempt_from_row(attempt, {task.id: task}) for attempt in row["attempts"]]
    return Group(attempts, row["rewards"], row["advantages"])


def tokens_of(groups: Sequence[Group]) -> int:
    """Tokens sampled."""
    return sum(len(completion.token_ids) for group in groups for completion in group.completions)
