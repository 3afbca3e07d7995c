"""The rows of a running batch: their part of the key/value cache, their scores, and where each stands.

Running rows are slots 0..`running`-1, so a step works on the front of every buffer and copies nothing. A finished slot
is taken by the next row, or, when none waits, by the last running one. Not covered: which row comes next (see
`inference.scheduler`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from throughline.model.cache import KeyValueCache
from throughline.model.language_model import LanguageModel

GRAIN = 16
"""Attention covers a multiple of this many positions. A multiple of the width of a vector, so that how far the others
have come does not change the order in which a row's sums are made."""

EVEN = 8
"""From so many rows on, a multiple of it is computed: matrix products are the same for every such number of rows, and
views made for one number serve longer."""
SEGMENT = 32
"""Rows that attend over one number of positions."""
AT_FIRST = 2**31
"""Bytes of address space that a cache may take at first; one that could need more grows when it does."""


def rounded(length: int, grain: int = GRAIN) -> int:
    """The multiple of `grain` at or above `length`."""
    return -(-length // grain) * grain


def lazy_cache(model: LanguageModel, rows: int, length: int) -> KeyValueCache:
    """An empty cache on the CPU whose memory the system hands out as it is written: long rows cost what they use."""
    cache = model.new_cache(1, 1)
    for name in ("keys", "values"):
        one = getattr(cache, name)
        shape = (one.shape[0], rows, one.shape[2], length, one.shape[4])
        zeros = torch.from_numpy(np.zeros(math.prod(shape) * one.element_size(), dtype=np.uint8))
        setattr(cache, name, zeros.view(one.dtype).view(shape))
    return cache


def front(cache: KeyValueCache, rows: int, length: int) -> KeyValueCache:
    """The first `rows` rows and `length` positions of a cache, sharing its memory."""
    view = KeyValueCache.__new__(KeyValueCache)
    view.keys, view.values = cache.keys[:, :rows, :, :length], cache.values[:, :rows, :, :length]
    return view


class Slots:
    """Room for `rows` rows of up to `limit` positions.

    With `ordered` the longest rows stand first, in segments, as far as `close_gaps` can see to it.
    """

    def __init__(self, model: LanguageModel, rows: int, limit: int, ordered: bool = False) -> None:
        self.rows = rows if rows < EVEN else rounded(rows, EVEN)
        self.limit, self.ordered = rounded(limit), ordered
        if model.device.type == "cpu":
            one = model.new_cache(1, 1)
            per_position = self.rows * (one.keys.nbytes + one.values.nbytes)
            length = min(self.limit, max(4 * GRAIN, rounded(AT_FIRST // per_position)))
            self.cache = lazy_cache(model, self.rows, length)
        else:
            # On a device the cache never moves: recorded steps hold its address.
            self.cache = model.new_cache(self.rows, self.limit)
        self.logits = torch.zeros(self.rows, model.config.vocab_size, device=model.device)
        self.running = 0
        self.at = np.zeros(self.rows, dtype=np.int64)
        """Positions of each row that are in the cache; 0 for slots without a row."""
        self.tokens = np.zeros(self.rows, dtype=np.int64)
        """The token that each row feeds next."""

    @property
    def computed(self) -> int:
        """Rows that a step computes: those running, and a few slots more for an even number."""
        return self.running if self.running < EVEN else rounded(self.running, EVEN)

    def attended(self, start: int, end: int) -> int:
        """Positions over which the next step of these slots must attend, rounded up."""
        return rounded(int(self.at[start:end].max()) + 1)

    def segments(self, rows: int) -> list[tuple[int, int]]:
        """The first `rows` slots in segments: their first slots and ends."""
        return [(start, min(start + SEGMENT, rows)) for start in range(0, rows, SEGMENT)]

    def reserve(self, length: int) -> None:
        """Make the cache at least `length` positions long."""
        if length > self.cache.length:
            self.cache.grow(min(self.limit, rounded(max(length, self.cache.length * 3 // 2))))

    def seat(self, slots: Sequence[int], cache: KeyValueCache, rows: Sequence[int], logits: Tensor) -> None:
        """Give `slots` the keys, values and scores of `rows` of a prefilled batch."""
        self.reserve(cache.length)
        device = self.logits.device
        into, source = torch.tensor(slots, device=device), torch.tensor(rows, device=device)
        for mine, theirs in ((self.cache.keys, cache.keys), (self.cache.values, cache.values)):
            mine[:, :, :, : cache.length].index_copy_(1, into, theirs.index_select(1, source))
        self.logits.index_copy_(0, into, logits.index_select(0, source))

    def vacate(self, slot: int) -> None:
        """Make a finished slot harmless until it is taken: it feeds token 0 at position 0."""
        self.at[slot] = self.tokens[slot] = 0

    def close_gaps(self, gaps: Sequence[int], seats: int) -> tuple[list[tuple[int, int]], list[int]]:
        """Close all but `seats` of `gaps`. Returns the rows' moves (from, to) in order, and the gaps left."""
        moves: list[tuple[int, int]] = []
        left = set(gaps)
        if self.ordered and self.running > SEGMENT:
            # A gap wanders to the last segment: the longest row of the next one takes its place, and so on.
            for gap in sorted(gaps):
                left.remove(gap)
                left.add(self._wander(gap, left, moves))
        for gap in sorted(left)[seats:]:
            while self.running - 1 in left and self.running - 1 > gap:
                self._shrink(left)
            if gap not in left:
                break
            if gap != self.running - 1:
                moves.append((self.running - 1, gap))
                self._move(self.running - 1, gap)
            left.remove(gap)
            self.running -= 1
        return moves, sorted(left)

    def _shrink(self, left: set[int]) -> None:
        self.running -= 1
        left.remove(self.running)

    def _wander(self, gap: int, others: set[int], moves: list[tuple[int, int]]) -> int:
        """Move rows so that `gap` comes to be in the last segment; returns where it is then."""
        for start in range((gap // SEGMENT + 1) * SEGMENT, self.running, SEGMENT):
            source = start + int(self.at[start : min(start + SEGMENT, self.running)].argmax())
            if source in others or not self.at[source]:
                break
            moves.append((source, gap))
            self._move(source, gap)
            gap = source
        return gap

    def _move(self, source: int, target: int) -> None:
        # One row at a time: selecting several of a part of the buffer would first copy the whole part.
        length = int(self.at[source])
        for buffer in (self.cache.keys, self.cache.values):
            buffer[:, target, :, :length] = buffer[:, source, :, :length]
        self.at[target], self.tokens[target] = self.at[source], self.tokens[source]
        self.vacate(source)
