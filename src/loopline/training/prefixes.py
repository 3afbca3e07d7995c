"""Prefixes that several sequences share, computed once: a prompt is computed once for all answers to it.

    batches = pack_shared(examples, row_length=256, rows_per_batch=32, attention_length=4 * hidden_size)

The ids before an example's first weight are its prefix. Examples with the same one share a row that holds it once, and
every continuation attends to it and to itself, as in a tree. Hidden states, losses and gradients are those of the
examples alone, up to rounding: the prefix's gradient is the sum over its continuations. With eight answers to a prompt
as long as an answer, that is little more than half of the tokens. After prefix grouping in verl and tree attention in
AReaL. Not covered: prefixes that share a prefix, labels within the shared ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loopline.training.batch import Batch, Example, Piece, assign_rows, evenly, lay_out

LONGER = (1, 2, 3, 4, 6, 8)
"""Row lengths tried, in multiples of the one asked for."""


@dataclass(frozen=True)
class Bundle:
    """Examples with one prefix, together in one row."""

    skip: int
    """Length of the prefix."""
    examples: list[Example]

    @property
    def length(self) -> int:
        """Ids in the row."""
        return sum(len(example.tokens) for example in self.examples) - self.skip * (len(self.examples) - 1)

    def pieces(self, place: int) -> list[Piece]:
        """Its pieces in a row that already holds `place` pieces."""
        return [Piece(e, self.skip if n else 0, place) for n, e in enumerate(self.examples)]


def beginning(example: Example) -> tuple[int, ...]:
    """The ids before the first with a weight."""
    until = next((n for n, weight in enumerate(example.weights) if weight and n), len(example.tokens))
    return tuple(example.tokens[:until])


def by_beginning(examples: Sequence[Example]) -> list[Bundle]:
    """Examples with the same prefix together, in the order in which the prefixes first occur."""
    groups: dict[tuple[int, ...], list[Example]] = {}
    for example in examples:
        groups.setdefault(beginning(example), []).append(example)
    return [Bundle(len(ids), members) for ids, members in groups.items()]


def split_bundle(bundle: Bundle, longest: int) -> list[Bundle]:
    """The bundle in parts of at most `longest` ids each, as few as best-fit decreasing finds."""
    if bundle.length <= longest:
        return [bundle]
    own = [len(example.tokens) - bundle.skip for example in bundle.examples]
    rows = assign_rows(own, longest - bundle.skip)
    return [Bundle(bundle.skip, [bundle.examples[n] for n in sorted(row)]) for row in rows]


def pack_shared(
    examples: Sequence[Example], row_length: int, rows_per_batch: int, attention_length: int
) -> list[Batch]:
    """Pack examples so that a row holds a common prefix once, into batches of at most as many ids as `pack`'s.

    `attention_length` is the row length at which attention costs as much as everything else; it decides how long rows
    become: longer ones share more and attend over more. Raises `UserError` for an example longer than a row.
    """
    bundles = by_beginning(examples)

    def rows_of(length: int) -> tuple[list[Bundle], list[list[int]]]:
        parts = [part for bundle in bundles for part in split_bundle(bundle, length)]
        return parts, assign_rows([part.length for part in parts], length)

    def cost(length: int) -> float:
        _, rows = rows_of(length)
        return len(rows) * length * (1 + length / attention_length)

    whole = max(bundle.length for bundle in bundles)
    lengths = sorted({min(row_length * factor, max(whole, row_length)) for factor in LONGER})
    length = min(lengths, key=cost)
    parts, rows = rows_of(length)
    at_once = max(1, rows_per_batch * row_length // length)
    laid = [_pieces([parts[n] for n in row]) for row in rows]
    return [lay_out(part) for part in evenly(laid, at_once)]


def _pieces(bundles: Sequence[Bundle]) -> list[Piece]:
    found: list[Piece] = []
    for bundle in bundles:
        found += bundle.pieces(len(found))
    return found
