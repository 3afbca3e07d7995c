"""One generated instance, its row, and the part (train, dev, heldout) that it belongs to.

An instance carries a canonical key: what makes it the same problem under another wording, order or name. The key alone
decides the part, by hash and without the seed, so no choice of seed, size or document source can move a
held-out instance into training. Use `collect` to sample distinct instances of one part, `rows` to turn them into the
rows of a tasks artifact.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from loopline.base.errors import UserError

Row = dict[str, Any]


@dataclass(frozen=True)
class Instance:
    """One problem with its reference answer and example responses.

    `key` is the canonical key, `fields` the task set's own columns, `responses` rows {"style", "messages"}, `tags`
    those of this instance beside its set's.
    """

    key: str
    template: str
    prompt: str
    answer: str
    responses: list[Row]
    fields: Row = field(default_factory=dict)
    tags: tuple[str, ...] = ()


def part_of(key: str, percent: int) -> str:
    """The part that the instance with this canonical key belongs to: `percent` are held out, as many are "dev"."""
    digest = hashlib.blake2b(key.encode("utf-8"), digest_size=4).digest()
    place = int.from_bytes(digest, "big") % 100
    return "heldout" if place < percent else "dev" if place < 2 * percent else "train"


def random_for(seed: int, *names: str) -> random.Random:
    """A generator that depends on the seed and the names only (string seeding is hash-randomisation proof)."""
    return random.Random("/".join((str(seed), *names)))


def reply(style: str, content: str) -> Row:
    """A one-turn example response."""
    return {"style": style, "messages": [{"role": "assistant", "content": content}]}


def collect(draw: Callable[[], Instance | None], count: int, what: str) -> list[Instance]:
    """Sample `count` instances with distinct prompts.

    `draw` returns None for a sample that must be rejected. Raises `UserError` when the instance space is too small.
    """
    seen: set[str] = set()
    found: list[Instance] = []
    attempts = 0
    while len(found) < count:
        attempts += 1
        if attempts > 400 * count + 20000:
            raise UserError(
                f"Only {len(found)} distinct {what} instances were found where {count} were asked for",
                "ask for fewer, or widen the ranges (max_terms, max_value, max_result, heldout_percent)",
            )
        instance = draw()
        if instance is None or instance.prompt in seen:
            continue
        seen.add(instance.prompt)
        found.append(instance)
    return found


def rows(task_set: str, part: str, grader: str, instances: list[Instance], tags: Sequence[str] = ()) -> list[Row]:
    """The rows of a tasks artifact, tagged with `tags` and their own.

    An id names the prompt, so it survives a change of counts or seed.
    """
    return [
        {
            "id": f"{task_set}-{hashlib.blake2b(item.prompt.encode('utf-8'), digest_size=6).hexdigest()}",
            "task_set": task_set,
            "part": part,
            "template": item.template,
            "tags": list(dict.fromkeys((*tags, *item.tags))),
            "messages": [{"role": "user", "content": item.prompt}],
            "answer": item.answer,
            "grader": grader,
            "responses": item.responses,
            **item.fields,
        }
        for item in instances
    ]


def fill(make: Callable[[], str], size: int, joiner: str = "\n") -> str:
    """One document: pieces from `make`, joined, until it is at least `size` characters long."""
    pieces: list[str] = []
    length = 0
    while length < size:
        piece = make()
        pieces.append(piece)
        length += len(piece) + len(joiner)
    return joiner.join(pieces)
