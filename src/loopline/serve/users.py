"""Scripted users: who asks what, with which private details, and how they react.

`cast(tasks, config, seed)` writes the conversations before the first request is sent; `reactions` decides feedback
from the grade of an answer. Both are functions of their arguments, so the same tasks and seed give the same traffic.
Not covered: sending (see `serve.stage`), and users whose feedback is wrong on purpose.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from loopline.base.errors import UserError
from loopline.serve.config import TrafficConfig
from loopline.tasks.task import Task

# Reserved ranges only: example.com (RFC 2606), 555-01xx numbers, and a card number that is a well-known test value.
_PRIVATE = (
    "My email is user{n}@example.com. {text}",
    "{text} Write to reader.{n}@example.org please.",
    "Call me at +1 202 555 01{n:02d}. {text}",
    "{text} My card is 4111 1111 1111 1111.",
    "I am at 192.0.2.{n}. {text}",
)


@dataclass
class Conversation:
    """One user's conversation: the tasks asked in turn and the messages so far."""

    name: str
    tasks: list[Task]
    questions: list[str]
    consent: bool
    gives_feedback: bool
    seed: int
    messages: list[dict[str, Any]] = field(default_factory=list)
    turn: int = 0

    def next_request(self, config: TrafficConfig) -> dict[str, Any] | None:
        """Body of the next request; None when the user has nothing more to ask."""
        if self.turn >= len(self.questions):
            return None
        if self.turn == 0:
            # Whatever the task shows before its last question is part of the conversation.
            self.messages = [dict(message) for message in self.tasks[0].messages[:-1]]
        self.messages.append({"role": "user", "content": self.questions[self.turn]})
        return {
            "model": "loopline",
            "messages": list(self.messages),
            "max_tokens": config.max_tokens,
            "temperature": config.temperature,
            "seed": self.seed + self.turn,
            "user": f"user of {self.name}",
            "metadata": {"consent": self.consent, "conversation": self.name},
        }

    def take(self, answer: str) -> None:
        """Note the answer; its content goes into the next request."""
        self.messages.append({"role": "assistant", "content": answer})
        self.turn += 1

    @property
    def task(self) -> Task:
        """The task behind the turn that was just asked."""
        return self.tasks[self.turn]


def unseen_tail(tasks: Sequence[Task], count: int) -> list[Task]:
    """`count` tasks from the tails of the task sets' rows, task sets in turn.

    Training stages read rows from the front, so the tail is what the released model was not trained on. Raises
    `UserError` when the tails are too short.
    """
    rows: dict[str, list[Task]] = {}
    for task in tasks:
        rows.setdefault(task.task_set, []).append(task)
    chosen: list[Task] = []
    depth = 1
    while len(chosen) < count:
        found = [rows[name][-depth] for name in rows if depth <= len(rows[name])]
        if not found:
            raise UserError(
                f"The chosen task sets hold {len(chosen)} training tasks, fewer than the {count} that users ask about",
                "lower `conversations`, choose more in `tasks`, or give the task sets more training tasks",
            )
        chosen += found
        depth += 1
    return chosen[:count]


def cast(tasks: Sequence[Task], config: TrafficConfig, seed: int) -> list[Conversation]:
    """The conversations to play, duplicates last."""
    rng = random.Random(f"traffic/{seed}")
    follow_ups = round(config.conversations * config.follow_up_share)
    pool = unseen_tail(tasks, config.conversations + follow_ups)
    first, second = pool[: config.conversations], pool[config.conversations :]
    rng.shuffle(first)
    with_second = sorted(rng.sample(range(config.conversations), follow_ups))
    later = dict(zip(with_second, second, strict=True))
    conversations = []
    for number, task in enumerate(first):
        asked = [task, *([later[number]] if number in later else [])]
        questions = [item.prompt for item in asked]
        if rng.random() < config.pii_share:
            template = _PRIVATE[rng.randrange(len(_PRIVATE))]
            questions[0] = template.format(n=rng.randrange(10, 100), text=questions[0])
        conversations.append(
            Conversation(
                name=f"conversation-{number:05d}",
                tasks=asked,
                questions=questions,
                consent=rng.random() < config.consent_share,
                gives_feedback=rng.random() < config.feedback_share,
                seed=rng.randrange(2**40),
            )
        )
    for number in range(round(config.conversations * config.duplicate_share)):
        original = conversations[rng.randrange(config.conversations)]
        conversations.append(
            Conversation(
                name=f"conversation-{config.conversations + number:05d}",
                tasks=original.tasks[:1],
                questions=original.questions[:1],
                consent=original.consent,
                gives_feedback=original.gives_feedback,
                # Half of the copies are resent requests, which get the same answer; the others ask anew.
                seed=original.seed if number % 2 == 0 else rng.randrange(2**40),
            )
        )
    return conversations


def reactions(task: Task, score: float | None, answer: str, rng: random.Random) -> list[dict[str, Any]]:
    """What a user who leaves feedback says about an answer with this score (None: it could not be graded).

    A wrong answer gets a thumbs down; most users who know better also give the right one. Someone who was refused a
    harmless request complains about it.
    """
    if score is None:
        return []
    if score >= 0.5:
        return [{"name": "thumbs", "value": "up"}]
    said: list[dict[str, Any]] = [{"name": "thumbs", "value": "down"}]
    if "must_answer" in task.tags:
        said.append({"name": "refusal_complaint", "value": "This was a harmless question."})
    if {"must_answer", "must_refuse"} & set(task.tags):
        return said
    if rng.random() < 0.75 and (right := right_answer(task)) is not None and right != answer:
        said.append({"name": "correction", "value": right})
    return said


def right_answer(task: Task) -> str | None:
    """What the user would have written: the first example response to the question itself, else the bare answer."""
    for _, prompt, response in task.conversations():
        if prompt == list(task.messages) and len(response) == 1:
            return str(response[0]["content"])
    return task.answer or None
