"""Batch sources over fixed data, all pure functions of (seed, step), so resume needs nothing but the step number.

`ExampleSource` walks shuffled epochs over examples and packs each step's share; `SetSource` mixes task sets in fixed
proportions; `PairSource` keeps preference pairs together; `ShardSource` reads token shards. Not covered: data sampled
from the model (see `rl.rollout`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from math import floor
from typing import Any

import numpy as np
import torch

from loopline.base.errors import UserError
from loopline.training.batch import Batch, Example, build_batch, pack
from loopline.training.shards import ShardSet


class StatelessSource:
    """Base of sources whose batches depend on the step alone."""

    def metrics(self) -> dict[str, float]:
        return {}

    def why(self) -> str:
        return ""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        del state


def epoch_indices(count: int, per_step: int, step: int, seed: int) -> list[int]:
    """The `per_step` indices below `count` of `step`, walking a fresh permutation each epoch."""
    return walk(count, step * per_step, per_step, seed)


def walk(count: int, start: int, length: int, seed: int) -> list[int]:
    """Items `start` to `start + length` of an endless walk over shuffled epochs of `count` items."""
    chosen: list[int] = []
    while len(chosen) < length:
        epoch, offset = divmod(start + len(chosen), count)
        order = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(count)
        chosen += order[offset : offset + length - len(chosen)].tolist()
    return chosen


def seed_for_name(seed: int, name: str) -> int:
    """A seed of its own for `name`."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "big")


def refuse_long(examples: Sequence[Example], row_length: int, what: str = "") -> None:
    """Raise `UserError` for an example that does not fit a row: now, not at the step that would first use it."""
    longest = max((len(example.tokens) for example in examples), default=0)
    if longest > row_length:
        count = sum(len(example.tokens) > row_length for example in examples)
        raise UserError(
            f"{count} of {len(examples)} examples{what} are longer than a row of {row_length} tokens, the longest "
            f"{longest}",
            f"set the stage's sequence_length to {longest} or more, or drop longer rows before training",
        )


class ExampleSource(StatelessSource):
    """Shuffled epochs over examples, packed into rows."""

    def __init__(
        self, examples: Sequence[Example], per_step: int, row_length: int, rows_per_batch: int, seed: int
    ) -> None:
        if not examples:
            raise UserError("There is nothing to train on", "check the filters of the stage that wrote the examples")
        refuse_long(examples, row_length)
        self.examples, self.per_step, self.seed = examples, per_step, seed
        self.row_length, self.rows_per_batch = row_length, rows_per_batch

    def next(self, step: int) -> Sequence[Batch]:
        chosen = [self.examples[i] for i in epoch_indices(len(self.examples), self.per_step, step, self.seed)]
        return pack(chosen, self.row_length, self.rows_per_batch)


class PairSource(StatelessSource):
    """Shuffled epochs over preference pairs, each pair side by side in one row: chosen, then rejected.

    `rows_per_batch` bounds the pairs of one forward pass; None takes a step's pairs at once.
    """

    def __init__(
        self, pairs: Sequence[tuple[Example, Example]], per_step: int, seed: int, rows_per_batch: int | None = None
    ) -> None:
        if not pairs:
            raise UserError("There are no preference pairs to train on", "sample more answers per prompt")
        self.pairs, self.per_step, self.seed = pairs, per_step, seed
        self.rows_per_batch = rows_per_batch or per_step

    def next(self, step: int) -> Sequence[Batch]:
        chosen = [self.pairs[i] for i in epoch_indices(len(self.pairs), self.per_step, step, self.seed)]
        if self.rows_per_batch < len(chosen):
            # Rows of like length share a batch, so short pairs are not padded to the longest.
            chosen.sort(key=lambda pair: -sum(len(side.tokens) for side in pair))
        size = self.rows_per_batch
        return [build_batch(chosen[start : start + size]) for start in range(0, len(chosen), size)]


def set_indices(
    sizes: Mapping[str, int], shares: Mapping[str, float], per_step: int, step: int, seed: int
) -> list[tuple[str, int]]:
    """The (task set, index) pairs of `step`: task sets in proportion to `shares` over any run of steps.

    Each task set walks shuffled epochs of its own, so no example repeats before its task set is used up.
    """
    wanted = {name: shares[name] for name in sorted(shares) if shares[name] > 0}
    missing = [name for name in wanted if not sizes.get(name)]
    if missing or not wanted:
        raise UserError(
            f"No examples for {', '.join(missing) or 'any task set'}",
            "set that task set's share to 0, or generate tasks of it",
        )
    total = sum(wanted.values())
    parts = [share / total for share in wanted.values()]
    before, after = apportion(parts, step * per_step), apportion(parts, (step + 1) * per_step)
    chosen: list[tuple[str, int]] = []
    for name, first, last in zip(wanted, before, after, strict=True):
        chosen += [(name, index) for index in walk(sizes[name], first, last - first, seed_for_name(seed, name))]
    return chosen


def apportion(parts: Sequence[float], count: int) -> list[int]:
    """How many of the first `count` places each part holds; `parts` add up to 1.

    Sainte-Lague's divisor method: part p takes its k-th place (from 0) at time (k + 1/2) / p. Nobody's number ever
    falls as `count` grows, which rounding each share by itself does not give.
    """

    def places(part: float, time: float) -> int:
        number = max(0, floor(part * time + 0.5) - 1)
        while (number + 0.5) / part <= time:
            number += 1
        return number

    # By time t between t - parts / 2 and t + parts / 2 places are taken, so only the last few are taken one by one.
    start = max(0.0, count - float(len(parts)))
    numbers = [places(part, start) for part in parts]
    while sum(numbers) < count:
        due = [(number + 0.5) / part for number, part in zip(numbers, parts, strict=True)]
        numbers[due.index(min(due))] += 1
    return numbers


class SetSource(StatelessSource):
    """Examples of several task sets in fixed proportions, packed into rows."""

    def __init__(
        self,
        examples: Mapping[str, Sequence[Example]],
        shares: Mapping[str, float],
        per_step: int,
        row_length: int,
        rows_per_batch: int,
        seed: int,
    ) -> None:
        self.examples, self.shares, self.per_step, self.seed = examples, shares, per_step, seed
        self.row_length, self.rows_per_batch = row_length, rows_per_batch
        self.sizes = {name: len(items) for name, items in examples.items()}
        set_indices(self.sizes, shares, per_step, 0, seed)
        for name, items in examples.items():
            refuse_long(items, row_length, f" of {name}")

    def next(self, step: int) -> Sequence[Batch]:
        chosen = set_indices(self.sizes, self.shares, self.per_step, step, self.seed)
        return pack([self.examples[name][i] for name, i in chosen], self.row_length, self.rows_per_batch)


class ShardSource(StatelessSource):
    """Windows of the mixture, a pure function of the step."""

    def __init__(
        self, shards: ShardSet, batch_tokens: int, length: int, seed: int, weights: Mapping[str, float] | None
    ) -> None:
        self.shards, self.length, self.seed, self.weights = shards, length, seed, weights
        self.rows = max(1, batch_tokens // length)

    def next(self, step: int) -> Sequence[Batch]:
        rows = self.shards.batch(step, self.rows, self.length, self.seed, self.weights)
        return [Batch(torch.from_numpy(rows))]
