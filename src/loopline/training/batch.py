"""Batches: sequences packed into rows without padding between them.

`pack` lays sequences into rows of one length by best-fit decreasing; a sequence sees only itself and its positions
start at zero, so packed numbers equal unpacked ones. A row may hold the beginning of several sequences once (see
`training.prefixes`). Not covered: sequences longer than a row (the caller cuts or refuses them).
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from loopline.base.errors import UserError
from loopline.model.language_model import LanguageModel
from loopline.model.segments import Segments

Row = TypeVar("Row")

SHORT_ROW = 384
"""Rows below this length keep their mask: there is little to save."""
GAIN = 0.6
"""Segments are taken when they cost less than this share of a masked row's pairs."""


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
    kept: Sequence[bytes] = ()
    """For each id the tokens it was sampled from, a bit each, lowest first (`Completion.kept_sets`), b"" for all
    tokens; empty when none had a choice cut."""


@dataclass(frozen=True)
class Piece:
    """A sequence as it is in a row, whole or without the prefix it has in common with an earlier one."""

    example: Example
    skip: int = 0
    """Length of the prefix that it shares with `trunk`, whose ids are not repeated."""
    trunk: int = 0
    """Which piece of the row, from 0, begins with them; that one is whole."""


@dataclass(frozen=True)
class Branches:
    """Which ids of a batch continue a prefix that several sequences have in common. All (B, T)."""

    part_BT: Tensor
    """Number of the common prefix that an id is part of; -1 where none."""
    after_BT: Tensor
    """Number of the common prefix that an id continues without being in its sequence; -2 where none."""
    source_BT: Tensor
    """Column of the id that each id is predicted from."""

    def to(self, device: torch.device | str) -> Branches:
        """The same on `device`."""
        part, after, source = self.part_BT, self.after_BT, self.source_BT
        return Branches(*(tensor.to(device, non_blocking=True) for tensor in (part, after, source)))


@dataclass(frozen=True)
class Batch:
    """Rows of packed sequences. Axes: B rows, T positions, N sequences."""

    tokens_BT: Tensor
    """Ids; 0 where empty."""
    positions_BT: Tensor | None = None
    """Position of each id in its sequence; None when every row is one sequence."""
    sequences_BT: Tensor | None = None
    """Number of the sequence each id belongs to, 0..N-1; -1 where empty. A common prefix belongs to the first."""
    weights_BT: Tensor | None = None
    """Loss weight of predicting each id; None means 1 for all but the first of a row."""
    extras: dict[str, Tensor] = field(default_factory=dict)
    """Further (B, T) numbers."""
    scalars: dict[str, Tensor] = field(default_factory=dict)
    """Further (N,) numbers."""
    branches: Branches | None = None
    """Where sequences share a prefix; None where every sequence is whole."""
    kept_BTW: Tensor | None = None
    """Tokens that each id was sampled from, eight to a byte (W bytes); None where from all."""
    segments: Segments | None = None
    """The sequences by length, where attending within each costs clearly less than over rows under a mask."""

    def hidden(self, model: LanguageModel) -> Tensor:
        """The model's hidden states (B, T, D), every sequence alone with itself."""
        if self.segments is not None and model.takes_segments:
            alone: Tensor = model(self.tokens_BT, mask=self.segments)
            return alone
        masked: Tensor = model(self.tokens_BT, positions_BT=self.positions_BT, mask=self.mask())
        return masked

    def mask(self) -> Tensor | None:
        """Boolean (B, 1, T, T), true where a query may look: earlier in the same sequence. None is plain causal."""
        if self.sequences_BT is None:
            return None
        length = self.tokens_BT.shape[1]
        same = self.sequences_BT[:, :, None] == self.sequences_BT[:, None, :]
        if self.branches is not None:
            same |= self.branches.after_BT[:, :, None] == self.branches.part_BT[:, None, :]
        return (same & torch.ones(length, length, dtype=torch.bool, device=same.device).tril())[:, None]

    def scored(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of the M ids with a weight: row, column, and the column of the id that predicts each, all (M,)."""
        assert self.weights_BT is not None
        length = self.tokens_BT.shape[1]
        index = torch.nonzero(self.weights_BT[:, 1:].reshape(-1))[:, 0]
        row, before = index // (length - 1), index % (length - 1)
        column = before + 1
        return row, column, before if self.branches is None else self.branches.source_BT[row, column]

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
            None if self.branches is None else self.branches.to(device),
            move(self.kept_BTW),
            None if self.segments is None else self.segments.to(device),
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
        build_batch([[sequences[number] for number in row] for row in part]) for part in evenly(rows, rows_per_batch)
    ]


def evenly(rows: Sequence[Row], most: int) -> list[Sequence[Row]]:
    """The rows in parts of at most `most`, of like size, and an even number of them unless one holds all.

    Threads that take a part each would wait for the largest, and for a last one without a partner.
    """
    count = -(-len(rows) // most)
    count += count % 2 if 1 < count < len(rows) else 0
    size, larger = divmod(len(rows), count) if count else (0, 0)
    ends = [number * size + min(number, larger) for number in range(count + 1)]
    return [rows[start:end] for start, end in itertools.pairwise(ends)]


def build_batch(rows: Sequence[Sequence[Example]]) -> Batch:
    """A batch of the given rows, each a list of sequences side by side."""
    return lay_out([[Piece(item) for item in row] for row in rows])


def lay_out(rows: Sequence[Sequence[Piece]]) -> Batch:
    """A batch of rows of pieces side by side."""
    length = max(sum(len(piece.example.tokens) - piece.skip for piece in row) for row in rows)
    first = rows[0][0].example
    shape = (len(rows), length)
    tokens, positions = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    owners, part = torch.full(shape, -1), torch.full(shape, -1)
    after, source = torch.full(shape, -2), torch.arange(-1, length - 1).repeat(len(rows), 1)
    weights = torch.zeros(shape)
    extras = {name: torch.zeros(shape) for name in first.extras}
    widths = {len(kept) for row in rows for piece in row for kept in piece.example.kept if kept}
    kept_sets = torch.full((*shape, widths.pop()), 255, dtype=torch.uint8) if widths else None
    scalars: dict[str, list[float]] = {name: [] for name in first.scalars}
    count = 0
    for number, row in enumerate(rows):
        at = 0
        starts: list[tuple[int, int]] = []  # of each piece: its column, its sequence
        for piece in row:
            item, skip = piece.example, piece.skip
            end = at + len(item.tokens) - skip
            tokens[number, at:end] = torch.as_tensor(item.tokens[skip:])
            positions[number, at:end] = torch.arange(skip, len(item.tokens))
            owners[number, at:end] = count
            weights[number, at:end] = torch.as_tensor(item.weights[skip:], dtype=torch.float32)
            if skip:
                begin, trunk = starts[piece.trunk]
                part[number, begin : begin + skip] = trunk
                after[number, at:end] = trunk
                source[number, at] = begin + skip - 1
            else:
                weights[number, at] = 0.0
            for name, values in item.extras.items():
                extras[name][number, at:end] = torch.as_tensor(values[skip:], dtype=torch.float32)
            for column, kept in enumerate(item.kept[skip:], start=at):
                if kept and kept_sets is not None:
                    kept_sets[number, column] = torch.frombuffer(bytearray(kept), dtype=torch.uint8)
            for name, value in item.scalars.items():
                scalars[name].append(value)
            starts.append((at, count))
            at, count = end, count + 1
    branches = Branches(part, after, source) if any(piece.skip for row in rows for piece in row) else None
    numbers = {name: torch.tensor(values) for name, values in scalars.items()}
    segments = None if branches is not None else worthwhile(owners)
    return Batch(tokens, positions, owners, weights, extras, numbers, branches, kept_sets, segments)


def worthwhile(sequences_BT: Tensor) -> Segments | None:
    """The segments of a batch, unless its rows are so short that what they save is less than what they cost."""
    rows, length = sequences_BT.shape
    if length < SHORT_ROW:
        return None
    segments = Segments.of(sequences_BT)
    return segments if segments.pairs < GAIN * rows * length * length else None
