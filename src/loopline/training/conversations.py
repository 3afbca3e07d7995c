"""Conversations as training examples: the loss sees what the assistant wrote, nothing else.

    example = conversation_example(tokenizer, messages, "row 7", given=2, tools=schemas)

`task_examples` picks one written answer per task by style. An example that would train on nothing is an error, and so
is one of which it cannot be said which turn a token belongs to. Not covered: lengths (see `training.lengths`), sampled
answers, which are trained on as the ids they were sampled (see `posttrain.selection`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar

import numpy as np

from loopline.base.errors import UserError
from loopline.chat.tokenizer import Tokenizer
from loopline.training.batch import Example
from loopline.training.lengths import Item

Message = Mapping[str, Any]
Learn = Literal["assistant", "last", "all"]
"""Loss on every turn of the assistant, on its last one, or on every token."""


class Conversational(Protocol):
    """What a task offers training: a prompt and written answers. `tasks.task.Task` is one."""

    @property
    def id(self) -> str: ...
    @property
    def task_set(self) -> str: ...
    @property
    def messages(self) -> Sequence[Message]: ...
    @property
    def tools(self) -> Sequence[Mapping[str, Any]]: ...
    @property
    def responses(self) -> Sequence[Mapping[str, Any]]: ...


Some = TypeVar("Some", bound=Conversational)


def conversation_example(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    name: str,
    given: int = 0,
    learn: Learn = "assistant",
    tools: Sequence[Mapping[str, Any]] = (),
    allow: Sequence[str] = (),
) -> Example:
    """A conversation as one example, with loss on what `learn` says.

    `given` leading messages are a prompt and carry no loss, whoever wrote them, and neither does a message with
    `weight: 0`. `tools` are schemas for the template, `allow` names parts of answers ("content", "reasoning",
    "tool_calls") that the template may drop. Raises `UserError` naming `name` when nothing is left to learn,
    or when the rendering does not show the turns of the assistant one by one.
    """
    plain = [{key: value for key, value in message.items() if key != "weight"} for message in messages]
    turns = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    wanted = {number for number in turns if number >= given and messages[number].get("weight") != 0}
    if learn == "last":
        wanted &= {turns[-1]} if turns else set()
    ids, mask = tokenizer.render_with_mask(
        plain,
        name=name,
        tools=[dict(tool) for tool in tools] or None,
        trained_from=min(wanted, default=len(messages)),
        allow=allow,
    )
    if learn == "all":
        return Example(ids, [0.0, *[1.0] * (len(ids) - 1)])
    weights = [float(wrote) for wrote in mask]
    if wanted and len(wanted) < len(turns):
        spans = _spans(mask)
        if len(spans) != len(turns):
            raise UserError(
                f"{name}: {len(turns)} turns of the assistant are rendered as {len(spans)} spans, so it cannot be said "
                "which of them is to be learnt",
                "put another turn between those of the assistant, or drop the row",
            )
        for number, (start, end) in zip(turns, spans, strict=True):
            if number not in wanted:
                weights[start:end] = [0.0] * (end - start)
    if not wanted or not any(weights):
        raise UserError(
            f"{name} has no assistant turn to learn from" + (" that is neither given nor of weight 0" if turns else ""),
            "add one, or drop the row",
        )
    return Example(ids, weights)


def completion_example(
    tokenizer: Tokenizer,
    prompt: Sequence[Message],
    completion: Sequence[Message],
    name: str,
    tools: Sequence[Mapping[str, Any]] = (),
) -> Example:
    """A prompt and its completion with loss on the completion alone."""
    return conversation_example(tokenizer, [*prompt, *completion], name, len(prompt), tools=tools)


def steps_example(
    tokenizer: Tokenizer,
    prompt: Sequence[Message],
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
    weights, label_of = [0.0] * len(ids), [0.0] * len(ids)
    for end, label in zip(ends, labels, strict=True):
        weights[end], label_of[end] = 1.0, float(label)
    return Example(ids, weights, {"label": label_of})


def _spans(mask: Sequence[bool]) -> list[tuple[int, int]]:
    """Runs of ids that the assistant wrote; the next turn's header is between two of them."""
    edges = np.flatnonzero(np.diff([False, *mask, False]))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]


def choose_response(task: Conversational, styles: Mapping[str, float], rng: np.random.Generator) -> Mapping[str, Any]:
    """One of the task's written answers, sampled by the weights of their styles (a style not named weighs 1)."""
    if not task.responses:
        raise UserError(
            f"The task {task.id} of {task.task_set} has no written answer to learn from",
            f"leave {task.task_set} out of `tasks`, or name its column of answers where the task set is defined",
        )
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
) -> dict[str, list[Item]]:
    """Examples per task set, at most `limits[task_set]` of each, in the order of `tasks`."""
    found: dict[str, list[Item]] = {}
    for task in tasks:
        kept = found.setdefault(task.task_set, [])
        if limits is not None and len(kept) >= limits.get(task.task_set, len(tasks)):
            continue
        response = choose_response(task, styles, rng)
        prompt = response.get("prompt", task.messages)
        example = conversation_example(tokenizer, [*prompt, *response["messages"]], task.id, tools=task.tools)
        kept.append(Item(task.id, (example,)))
    return found


def sets_of(tasks: Sequence[Some], wanted: Mapping[str, float]) -> dict[str, list[Some]]:
    """The tasks of each set with a share above zero, in order."""
    names = [name for name, share in wanted.items() if share > 0]
    return {name: [task for task in tasks if task.task_set == name] for name in names}
