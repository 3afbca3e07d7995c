"""Batch sources over a fixed list of examples.

`ExampleSource` walks shuffled epochs over examples and packs each step's share; `PairSource` keeps preference pairs
together. Both are pure functions of (seed, step), so resume needs nothing but the step number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from throughline.base.errors import UserError
from throughline.training.batch import Batch, Example, build_batch, pack


class StatelessSource:
    """Base of sources whose batches depend on the step alone."""

    def metrics(self) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        del state


def epoch_indices(count: int, per_step: int, step: int, seed: int) -> list[int]:
    """The `per_step` indices below `count` of `step`, walking a fresh permutation each epoch."""
    chosen: list[int] = []
    at = step * per_step
    while len(chosen) < per_step:
        epoch, offset = divmod(at + len(chosen), count)
        order = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(count)
        chosen += order[offset : offset + per_step - len(chosen)].tolist()
    return chosen


class ExampleSource(StatelessSource):
    """Shuffled epochs over examples, packed into rows."""

    def __init__(
        self, examples: Sequence[Example], per_step: int, row_length: int, rows_per_batch: int, seed: int
    ) -> None:
        if not examples:
            raise UserError("There is nothing to train on", "check the filters of the stage that wrote the examples")
        self.examples, self.per_step, self.seed = examples, per_step, seed
        self.row_length, self.rows_per_batch = row_length, rows_per_batch

    def next(self, step: int) -> Sequence[Batch]:
        chosen = [self.examples[i] for i in epoch_indices(len(self.examples), self.per_step, step, self.seed)]
        return pack(chosen, self.row_length, self.rows_per_batch)


class PairSource(StatelessSource):
    """Shuffled epochs over preference pairs, each pair side by side in one row: chosen, then rejected."""

    def __init__(self, pairs: Sequence[tuple[Example, Example]], per_step: int, seed: int) -> None:
        if not pairs:
            raise UserError("There are no preference pairs to train on", "sample more answers per prompt")
        self.pairs, self.per_step, self.seed = pairs, per_step, seed

    def next(self, step: int) -> Sequence[Batch]:
        chosen = [self.pairs[i] for i in epoch_indices(len(self.pairs), self.per_step, step, self.seed)]
        return [build_batch(chosen)]
