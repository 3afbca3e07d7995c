"""Which sampled answers become training data, and why the others do not.

    selection = select(groups, config, heldout, rng)       # Selection(rows, answers, rejected, pass_rates)

Every answer is kept or counted under one reason. An answer carries the ids it was sampled as, and those are what a
policy with the same tokenizer is trained on. Not covered: sampling and grading (see `reject`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from loopline.attempts.attempt import Attempt
from loopline.posttrain.reject_config import RejectConfig
from loopline.tasks.rows import Conversation, Message
from loopline.text.words import jaccard, words_of

REASONS = (
    "could not be graded",
    "cut off",
    "wrong",
    "too long",
    "held-out text",
    "prompt too hard",
    "prompt too easy",
    "repeated",
    "near duplicate",
    "not the best",
    "balance",
)
"""Why an answer is not kept, in the order in which the rules are tried."""
QUARTERS = 4


class Heldout(Protocol):
    """What no kept answer may hold."""

    def holds(self, text: str) -> bool: ...


@dataclass(frozen=True)
class Answer:
    """One answer to a prompt."""

    text: str
    score: float | None
    finish: str
    """"stop", or "length" when it was cut off."""
    tokens: int
    """Tokens that were sampled."""
    prompt: tuple[int, ...] = ()
    """Ids of what the policy saw; empty where they were not kept."""
    ids: tuple[int, ...] = ()
    """Ids it wrote, the stop token included."""
    rank: float | None = None
    """Its score by a reward model."""


@dataclass(frozen=True)
class Group:
    """The answers to one prompt."""

    task: str
    task_set: str
    messages: tuple[Message, ...]
    answers: tuple[Answer, ...]
    tools: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Accepted:
    """A kept answer and where it comes from."""

    group: Group
    answer: Answer
    pass_rate: float

    def to_row(self) -> Conversation:
        """A row of rows.jsonl."""
        row: dict[str, Any] = {
            "id": f"{self.group.task}/{self.group.answers.index(self.answer)}",
            "task": self.group.task,
            "task_set": self.group.task_set,
            "messages": [*self.group.messages, {"role": "assistant", "content": self.answer.text}],
            "given": len(self.group.messages),
            "score": self.answer.score,
            "pass_rate": self.pass_rate,
            "tokens": self.answer.tokens,
        }
        if self.group.tools:
            row["tools"] = list(self.group.tools)
        return row  # type: ignore[return-value]


@dataclass(frozen=True)
class Selection:
    """What was kept, and what was not."""

    kept: list[Accepted]
    rejected: dict[str, int]
    """Answers by reason."""
    pass_rates: list[float]
    """Of every prompt with a graded answer."""


def group_of(attempts: Sequence[Attempt]) -> Group:
    """The attempts at one task."""
    task = attempts[0].task
    answers = tuple(
        Answer(
            attempt.text,
            attempt.score,
            attempt.completion.finish,
            attempt.tokens or 0,
            attempt.prompt,
            tuple(attempt.completion.token_ids),
        )
        for attempt in attempts
    )
    return Group(task.id, task.task_set, tuple(task.messages), answers, tuple(task.tools))


def rollout_groups(rows: Sequence[Mapping[str, Any]], from_step: float) -> tuple[list[Group], int]:
    """The groups of rollouts.jsonl after a share of the steps, one per task, and how many answers came earlier.

    A prompt may have come up at several steps; its answers compete with each other.
    """
    last = max((row["step"] for row in rows), default=0) + 1
    groups: dict[str, Group] = {}
    early = 0
    for row in rows:
        if row["step"] < from_step * last:
            early += len(row["outputs"])
            continue
        answers = tuple(Answer(o["text"], o["score"], o["finish"], o["tokens"]) for o in row["outputs"])
        known = groups.get(row["task"], Group(row["task"], row["task_set"], tuple(row["messages"]), ()))
        groups[row["task"]] = replace(known, answers=(*known.answers, *answers))
    return list(groups.values()), early


def passes(answer: Answer, config: RejectConfig) -> bool:
    """Whether an answer ended by itself and scored enough."""
    return answer.score is not None and answer.score >= config.threshold and answer.finish == "stop"


def pass_rate(group: Group, config: RejectConfig) -> float | None:
    """Share of the graded answers that pass; None when none could be graded."""
    graded = [answer for answer in group.answers if answer.score is not None]
    return sum(passes(answer, config) for answer in graded) / len(graded) if graded else None


def select(
    groups: Sequence[Group],
    config: RejectConfig,
    heldout: Heldout | None,
    rng: np.random.Generator,
    position_limit: int | None = None,
) -> Selection:
    """Apply every rule; the result depends on the arguments alone. `position_limit` is the model's, in tokens."""
    rejected: Counter[str] = Counter(dict.fromkeys(REASONS, 0))
    accepted: list[Accepted] = []
    seen: set[tuple[str, ...]] = set()
    rates = [pass_rate(group, config) for group in groups]
    for group, rate in zip(groups, rates, strict=True):
        prompt = [str(message["content"]) for message in group.messages]
        for answer in _of_group(group, rate, config, heldout, rejected, config.longest(position_limit)):
            key = (*prompt, " ".join(words_of(answer.text)) or answer.text)
            if key in seen:
                # The same prompt may be in the file twice.
                rejected["repeated"] += 1
                continue
            seen.add(key)
            accepted.append(Accepted(group, answer, rate or 0.0))
    kept = balance([one.pass_rate for one in accepted], config.bucket_share, rng)
    rejected["balance"] = len(accepted) - len(kept)
    return Selection(
        [accepted[number] for number in kept], dict(rejected), [rate for rate in rates if rate is not None]
    )


def _of_group(
    group: Group,
    rate: float | None,
    config: RejectConfig,
    heldout: Heldout | None,
    rejected: Counter[str],
    limit: int,
) -> list[Answer]:
    """The answers kept of one prompt, best first; counts the others."""
    longest = config.max_tokens or config.max_new_tokens
    candidates: list[Answer] = []
    for answer in group.answers:
        if answer.score is None:
            rejected["could not be graded"] += 1
        elif answer.finish != "stop":
            rejected["cut off"] += 1
        elif answer.score < config.threshold:
            rejected["wrong"] += 1
        elif answer.tokens > longest or len(answer.prompt) + len(answer.ids) > limit:
            rejected["too long"] += 1
        elif heldout is not None and heldout.holds(answer.text):
            rejected["held-out text"] += 1
        else:
            candidates.append(answer)
    if rate is not None and rate < config.min_pass_rate:
        rejected["prompt too hard"] += len(candidates)
        return []
    if rate is not None and rate > config.max_pass_rate:
        rejected["prompt too easy"] += len(candidates)
        return []
    kept: list[Answer] = []
    texts: set[str] = set()
    for answer in sorted(candidates, key=lambda answer: _order(answer, config)):
        text = " ".join(answer.text.split())
        if text in texts:
            rejected["repeated"] += 1
        elif len(kept) >= config.per_prompt:
            rejected["not the best"] += 1
        elif config.similarity < 1 and any(
            jaccard(text, " ".join(other.text.split())) >= config.similarity for other in kept
        ):
            rejected["near duplicate"] += 1
        else:
            kept.append(answer)
        texts.add(text)
    return kept


def _order(answer: Answer, config: RejectConfig) -> tuple[float, int, str]:
    """Sorts a prompt's answers, best first."""
    worth = answer.score if answer.rank is None else answer.rank
    return 0.0 if config.select == "shortest" else -(worth or 0.0), answer.tokens, answer.text


def quarter(rate: float) -> int:
    """0 for pass rates up to 1/4, ... 3 for those above 3/4."""
    return min(QUARTERS - 1, max(0, int(np.ceil(rate * QUARTERS)) - 1))


def balance(rates: Sequence[float], share: float, rng: np.random.Generator) -> list[int]:
    """Indices kept, in order, so that no quarter of pass rates holds more than `share` of them.

    Of k quarters that have any row each may hold 1/k at least. Rows of a full quarter are dropped at random.
    """
    members: dict[int, list[int]] = {}
    for number, rate in enumerate(rates):
        members.setdefault(quarter(rate), []).append(number)
    sizes = {name: len(rows) for name, rows in members.items()}
    cap = max(sizes.values(), default=0)
    allowed = max(share, 1 / max(len(sizes), 1))
    # Lowering the cap shrinks the largest quarters only, so the first cap that holds keeps most.
    while cap > 1 and cap > allowed * sum(min(size, cap) for size in sizes.values()) + 1e-9:
        cap -= 1
    kept: list[int] = []
    for name in sorted(members):
        rows = members[name]
        kept += rows if len(rows) <= cap else [rows[place] for place in rng.permutation(len(rows))[:cap]]
    return sorted(kept)


def histogram(rates: Sequence[float]) -> dict[str, int]:
    """Prompts by pass rate: none, the four quarters up to below all, all."""
    names = ["0", "0 to 1/4", "1/4 to 1/2", "1/2 to 3/4", "3/4 to 1", "1"]
    counts = dict.fromkeys(names, 0)
    for rate in rates:
        counts["0" if rate == 0 else "1" if rate == 1 else names[1 + quarter(rate)]] += 1
    return counts
