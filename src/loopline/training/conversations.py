"""Conversations as training examples: the loss sees what the assistant wrote, nothing else.

`task_examples` picks one written answer per task by style; `message_example` takes any conversation, and
`conversation_example` one of which only some turns are to be learnt. An example whose assistant wrote nothing is an
error, never a row that trains on nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from loopline.base.errors import UserError
from loopline.chat.tokenizer import Tokenizer
from loopline.training.batch import Example


class Conversational(Protocol):
    """What a task offers training: a prompt and written answers. `grading.tasks.Task` is one."""

    @property
    def id(self) -> str: ...
    @property
    def task_set(self) -> str: ...
    @property
    def messages(self) -> Sequence[Mapping[str, Any]]: ...
    @property
    def responses(self) -> Sequence[Mapping[str, Any]]: ...


Some = TypeVar("Some", bound=Conversational)


def message_example(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], name: str) -> Example:
    """A conversation with loss on every assistant turn. Raises `UserError` when there is none, naming `name`."""
    ids, mask = tokenizer.render_with_mask(messages, name=name)
    if not any(mask):
        raise UserError(f"{name} has no assistant turn to learn from", "add one, or drop the row")
    return Example(ids, [float(wrote) for wrote in mask])


def conversation_example(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], given: int, learn: str, name: str
) -> Example:
    """A conversation as one example.

    `given` leading messages are a prompt and carry no loss, whoever wrote them; `learn` is "assistant" (every turn of
    the assistant after them), "last" (its last turn) or "all" (every token).
    """
    example = message_example(tokenizer, messages, name)
    if learn == "all":
        return Example(example.tokens, [0.0, *[1.0] * (len(example.tokens) - 1)])
    weights = list(example.weights)
    runs = _runs(weights)
    skipped = sum(message["role"] == "assistant" for message in messages[:given])
    if learn == "last":
        skipped = len(runs) - 1
    for start, end in runs[:skipped]:
        weights[start:end] = [0.0] * (end - start)
    return Example(example.tokens, weights)


def completion_example(
    tokenizer: Tokenizer, prompt: Sequence[Mapping[str, Any]], completion: Sequence[Mapping[str, Any]], name: str
) -> Example:
    """A prompt and its completion with loss on the completion alone."""
    return conversation_example(tokenizer, [*prompt, *completion], len(prompt), "assistant", name)


def steps_example(
    tokenizer: Tokenizer,
    prompt: Sequence[Mapping[str, Any]],
    steps: Sequence[str],
    labels: Sequence[float],
    separator: str,
    name: str,
) -> Example:
    """A solution in steps, for a process reward model: a weight and its label on the last token of each step.

    Each step is encoded by itself, with `separator` at its end, so that its tokens do not depend on what follows: a
    solution that is still being written is scored at the same tokens. `extras["label"]` holds the labels. Raises
    `UserError` for a step without tokens, naming `name`.
    """
    ids = list(tokenizer.render(prompt, add_generation_prompt=True))
    ends: list[int] = []
    for number, step in enumerate(steps, start=1):
        written = tokenizer.encode_plain(step + separator)
        if not step.strip() or not written:
            raise UserError(f"{name}: step {number} is empty", "remove it and its label")
        ids += written
        ends.append(len(ids) - 1)
    ids.append(tokenizer.end_id)
    weights, marks = [0.0] * len(ids), [0.0] * len(ids)
    for end, label in zip(ends, labels, strict=True):
        weights[end], marks[end] = 1.0, float(label)
    return Example(ids, weights, {"label": marks})


def _runs(weights: Sequence[float]) -> list[tuple[int, int]]:
    """Spans of ids that the assistant wrote, one per turn: marks of roles stand between them."""
    runs: list[tuple[int, int]] = []
    for place, weight in enumerate(weights):
        if weight and (place == 0 or not weights[place - 1]):
            runs.append((place, place))
        if weight:
            runs[-1] = (runs[-1][0], place + 1)
    return runs


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
    """Examples per task set, at most `limits[task_set]` of each, in the order of `tasks`."""
    found: dict[str, list[Example]] = {}
    for task in tasks:
        kept = found.setdefault(task.task_set, [])
        if limits is not None and len(kept) >= limits.get(task.task_set, len(tasks)):
            continue
        response = choose_response(task, styles, rng)
        prompt = response.get("prompt", task.messages)
        kept.append(message_example(tokenizer, [*prompt, *response["messages"]], task.id))
    return found


def sets_of(tasks: Sequence[Some], wanted: Mapping[str, float]) -> dict[str, list[Some]]:
    """The tasks of each task set with a share above zero, in order."""
    names = [name for name, share in wanted.items() if share > 0]
    return {name: [task for task in tasks if task.task_set == name] for name in names}
