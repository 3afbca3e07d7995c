"""Conversations as training examples: the loss sees what the assistant wrote, nothing else.

`task_examples` picks one written answer per task by style; `message_example` takes any conversation. An example whose
assistant wrote nothing is an error, never a row that trains on nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from throughline.base.errors import UserError
from throughline.model.tokenizer import Tokenizer
from throughline.training.batch import Example


class Conversational(Protocol):
    """What a task offers training: a prompt and written answers. `grading.tasks.Task` is one."""

    @property
    def id(self) -> str: ...
    @property
    def family(self) -> str: ...
    @property
    def messages(self) -> Sequence[Mapping[str, Any]]: ...
    @property
    def responses(self) -> Sequence[Mapping[str, Any]]: ...


Some = TypeVar("Some", bound=Conversational)


def message_example(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], name: str) -> Example:
    """A conversation with loss on every assistant turn. Raises `UserError` when there is none, naming `name`."""
    ids, mask = tokenizer.render_with_mask(messages)
    if not any(mask):
        raise UserError(f"{name} has no assistant turn to learn from", "add one, or drop the row")
    return Example(ids, [float(wrote) for wrote in mask])


def choose_response(task: Conversational, styles: Mapping[str, float], rng: np.random.Generator) -> Mapping[str, Any]:
    """One of the task's written answers, drawn by the weights of their styles (a style not named weighs 1)."""
    weights = np.array([styles.get(response["style"], 1.0) for response in task.responses], dtype=float)
    if weights.sum() <= 0:
        raise UserError(f"Every written answer of {task.id} has a style of weight 0", "give one of its styles a weight")
    return task.responses[int(rng.choice(len(weights), p=weights / weights.sum()))]


def task_examples(
    tokenizer: Tokenizer,
    tasks: Sequence[Conversational],
    styles: Mapping[str, float],
    rng: np.random.Generator,
    limits: Mapping[str, int] | None = None,
) -> dict[str, list[Example]]:
    """Examples per family, at most `limits[family]` of each, in the order of `tasks`."""
    found: dict[str, list[Example]] = {}
    for task in tasks:
        kept = found.setdefault(task.family, [])
        if limits is not None and len(kept) >= limits.get(task.family, len(tasks)):
            continue
        response = choose_response(task, styles, rng)
        prompt = response.get("prompt", task.messages)
        kept.append(message_example(tokenizer, [*prompt, *response["messages"]], task.id))
    return found


def families_of(tasks: Sequence[Some], wanted: Mapping[str, float]) -> dict[str, list[Some]]:
    """The tasks of each family with a share above zero, in order."""
    names = [name for name, share in wanted.items() if share > 0]
    return {name: [task for task in tasks if task.family == name] for name in names}
