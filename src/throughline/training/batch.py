"""Batches: sequences packed into rows without padding between them.

`pack` lays sequences into rows of one length by best-fit decreasing; a sequence sees only itself and its positions
start at zero, so packed numbers equal unpacked ones. Not covered: sequences longer than a row (the caller cuts or
refuses them).
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from throughline.base.errors import UserError


@dataclass(frozen=True)
class Example:
    """One sequence to train on."""

    tokens: Sequence[int]
    """Ids."""
    weights: Sequence[float]
    """Loss weight of predicting each id from those before it; the first is never predicted."""
    extras: dict[str, Sequence[float]] = field(default_factory=dict)
    """Further numbers per id, such as "advantages" or "old_logprobs"."""
    scalars: dict[str, float] = field(default_factory=dict)
    """Further numbers per sequence, such as "reference" or "sign"."""


@dataclass(frozen=True)
class Batch:
    """Rows of packed sequences. Axes: B rows, T positions, N sequences."""

    tokens_BT: Tensor
    """Ids; 0 where empty."""
    positions_BT: Tensor | None = None
    """Position of each id in its sequence; None when every row is one sequence."""
    sequences_BT: Tensor | None = None
    """Number of the sequence each id belongs to, 0..N-1; -1 where empty."""
    weights_BT: Tensor | None = None
    """Loss weight of predicting each id; None means 1 for all but the first of a row."""
    extras: dict[str, Tensor] = field(default_factory=dict)
    """Further (B, T) numbers."""
    scalars: dict[str, Tensor] = field(default_factory=dict)
    """Further (N,) numbers."""

    def mask(self) -> Tensor | None:
        """Boolean (B, 1, T, T), true where a query may look: earlier in the same sequence. None is plain causal."""
        if self.sequences_BT is None:
            return None
        length = self.tokens_BT.shape[1]
        same = self.sequences_BT[:, :, None] == self.sequences_BT[:, None, :]
        return (same & torch.ones(length, length, dtype=torch.bool, device=same.device).tril())[:, None]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`; itself when it is there already."""
        if self.tokens_BT.device == torch.device(device):
            return self

        def move(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.to(device, non_blocking=True)

        return Batch(
            self.tokens_BT.to(device, non_blocking=True),
            move(self.positions_BT),
            move(self.sequences_BT),
            move(self.weights_BT),
            {name: value.to(device, non_blocking=True) for name, value in self.extras.items()},
            {name: value.to(device, non_blocking=True) for name, value in self.scalars.items()},
        )

    @property
    def token_count(self) -> int:
        """Ids that are not empty."""
        return int(self.tokens_BT.numel() if self.sequences_BT is None else (self.sequences_BT >= 0).sum())


def assign_rows(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Best-fit decreasing: which sequences share a row. Raises `UserError` for one longer than a row."""
    rows: list[list[int]] = []
    space: list[tuple[int, int]] = []  # (free, row), sorted
    for number in sorted(range(len(lengths)), key=lambda item: (-lengths[item], item)):
        need = lengths[number]
        if need > row_length:
            raise UserError(
                f"A sequence of {need} tokens does not fit a row of {row_length}",
                "raise the stage's sequence_length, or drop longer rows before training",
            )
        at = bisect.bisect_left(space, (need, -1))
        if at == len(space):
            rows.append([number])
            bisect.insort(space, (row_length - need, len(rows) - 1))
        else:
            free, row = space.pop(at)
            rows[row].append(number)
            bisect.insort(space, (free - need, row))
    return rows


def pack(sequences: Sequence[Example], row_length: int, rows_per_batch: int) -> list[Batch]:
    """Pack sequences into rows of `row_length`, and the rows into batches of at most `rows_per_batch`.

    Every sequence must carry the same `extras` and `scalars`. Rows of a batch are cut to its longest.
    """
    rows = assign_rows([len(item.tokens) for item in sequences], row_length)
    return [
        build_batch([[sequences[number] for number in row] for row in rows[start : start + rows_per_batch]])
        for start in range(0, len(rows), rows_per_batch)
    ]


def build_batch(rows: Sequence[Sequence[Example]]) -> Batch:
    """A batch of the given rows, each a list of sequences side by side."""
    length = max(sum(len(item.tokens) for item in row) for row in rows)
    first = rows[0][0]
    tokens = torch.zeros(len(rows), length, dtype=torch.long)
    positions = torch.zeros(len(rows), length, dtype=torch.long)
    owners = torch.full((len(rows), length), -1, dtype=torch.long)
    weights = torch.zeros(len(rows), length)
    extras = {name: torch.zeros(len(rows), length) for name in first.extras}
    scalars: dict[str, list[float]] = {name: [] for name in first.scalars}
    count = 0
    for number, row in enumerate(rows):
        at = 0
        for item in row:
            end = at + len(item.tokens)
            tokens[number, at:end] = torch.as_tensor(item.tokens)
            positions[number, at:end] = torch.arange(end - at)
            owners[number, at:end] = count
            weights[number, at:end] = torch.as_tensor(item.weights, dtype=torch.float32)
            weights[number, at] = 0.0
            for name, values in item.extras.items():
                extras[name][number, at:end] = torch.as_tensor(values, dtype=torch.float32)
            for name, value in item.scalars.items():
                scalars[name].append(value)
            at, count = end, count + 1
    return Batch(tokens, positions, owners, weights, extras, {name: torch.tensor(v) for name, v in scalars.items()})
