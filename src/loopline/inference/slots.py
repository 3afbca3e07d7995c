"""The rows of a running batch: their part of the key/value cache, their logits, and the position of each.

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

from loopline.model.cache import KeyValueCache
from loopline.model.language_model import LanguageModel

GRAIN = 16
"""Attention covers a multiple of this many positions. A multiple of the width of a vector, so that how far the others
have come does not change the order in which a row's sums are made."""

EVEN = 8
"""From so many rows on, a multiple of it is computed: matrix products are the same for every such number of rows, and
views made for one number serve longer."""
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
    """Space for `rows` rows of up to `limit` positions."""

    def __init__(self, model: LanguageModel, rows: int, limit: int) -> None:
        self.rows = rows if rows < EVEN else rounded(rows, EVEN)
        self.limit = rounded(limit)
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

    @property
    def attended(self) -> int:
        """Positions over which the next step must attend, rounded up."""
        return rounded(int(self.at[: self.running].max()) + 1)

    def reserve(self, length: int) -> None:
        """Make the cache at least `length` positions long."""
        if length > self.cache.length:
            self.cache.grow(min(self.limit, rounded(max(length, self.cache.length * 3 // 2))))

    def seat(self, slots: Sequence[int], cache: KeyValueCache, rows: Sequence[int], logits: Tensor) -> None:
        """Give `slots` the keys, values and logits of `rows` of a prefilled batch."""
        self.reserve(cache.length)
        device = self.logits.device
        into, source = torch.tensor(slots, device=device), torch.tensor(rows, device=device)
        for mine, theirs in ((self.cache.keys, cache.keys), (self.cache.values, cache.values)):
            mine[:, :, :, : cache.length].index_copy_(1, into, theirs.index_select(1, source))
        self.logits.index_copy_(0, into, logits.index_select(0, source))

    def vacate(self, slot: int) -> None:
        """Release a finished slot; until it is assigned again it feeds token 0 at position 0."""
        self.at[slot] = self.tokens[slot] = 0

    def close_gaps(self, gaps: Sequence[int], seats: int) -> tuple[list[tuple[int, int]], list[int]]:
        """Close all but `seats` of `gaps`. Returns the rows' moves (from, to) in order, and the gaps left."""
        moves: list[tuple[int, int]] = []
        left = set(gaps)
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

    def _move(self, source: int, target: int) -> None:
        # One row at a time: selecting several of a part of the buffer would first copy the whole part.
        length = int(self.at[source])
        for buffer in (self.cache.keys, self.cache.values):
            buffer[:, target, :, :length] = buffer[:, source, :, :length]
        self.at[target], self.tokens[target] = self.at[source], self.tokens[source]
        self.vacate(source)
