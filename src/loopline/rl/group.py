"""One prompt's samples: what was asked, what was sampled, how it was graded and rewarded.

`Group` is what rollouts are made of; `row_of` is its line in `rollouts.jsonl`; `pack_group` and `unpack_group` keep it
in a training state, so that a resumed run trains on the very samples that were drawn. Not covered: drawing them (see
`rl.sampler`) and what the loss sees of them (see `rl.examples`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from loopline.grading.grade import Grade
from loopline.inference.engine import Completion
from loopline.tasks.task import Task, task_from_row


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
    thinking: bool = True
    """Whether the prompt left room for thinking; False where the template closed it."""

    @property
    def has_signal(self) -> bool:
        return any(advantage for advantage in self.advantages if advantage is not None)


def token_versions(completion: Completion) -> list[int]:
    """Version of the weights that sampled each token."""
    return list(completion.policy_versions) or [completion.policy_version] * len(completion.token_ids)


def forced_tokens(completion: Completion) -> list[bool]:
    """Which tokens the engine wrote itself, such as a forced end of thinking."""
    return list(completion.forced) or [False] * len(completion.token_ids)


def trained_tokens(completion: Completion) -> int:
    """Tokens the policy chose, which are those a loss may see."""
    return len(completion.token_ids) - sum(forced_tokens(completion))


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


def pack_group(group: Group) -> dict[str, Any]:
    """A group as plain values, floats exact."""
    return {
        "task": group.task.model_dump(mode="json"),
        "prompt": list(group.prompt),
        "completions": [asdict(completion) for completion in group.completions],
        "texts": list(group.texts),
        "grades": [asdict(grade) for grade in group.grades],
        "rewards": list(group.rewards),
        "advantages": list(group.advantages),
        "thinking": group.thinking,
    }


def unpack_group(row: dict[str, Any]) -> Group:
    """The group that `pack_group` wrote."""
    known = {field.name for field in fields(Completion)}
    return Group(
        task=task_from_row(row["task"], "a rollout in the training state"),
        prompt=row["prompt"],
        completions=[Completion(**{k: v for k, v in c.items() if k in known}) for c in row["completions"]],
        texts=row["texts"],
        grades=[Grade(**{**g, "steps": tuple(g["steps"]), "flags": tuple(g["flags"])}) for g in row["grades"]],
        rewards=row["rewards"],
        advantages=row["advantages"],
        thinking=row["thinking"],
    )


def tokens_of(groups: Sequence[Group]) -> int:
    """Tokens sampled."""
    return sum(len(completion.token_ids) for group in groups for completion in group.completions)
