"""The rows of a running batch: their part of the key/value cache, their scores, and where each stands.

Running rows are slots 0..`running`-1, so a step works on the front of every buffer and copies nothing. A finished slot is
taken by the next row, or, when none waits, by the last running one. Axes: R slots, L layers, K key/value heads, S cached
positions, C channels, V vocabulary. Not covered: which row comes next (see `inference.scheduler`).
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
    """Room for `rows` rows of up to `limit` positions."""

    def __init__(self, model: LanguageModel, rows: int, limit: int) -> None:
        self.rows, self.limit = rows, rounded(limit)
        # On a device the cache never moves: recorded steps hold its address.
        self.fixed = model.device.type != "cpu"
        if self.fixed:
            self.cache = model.new_cache(rows, self.limit)
        else:
            one = model.new_cache(1, 1)
            per_position = rows * (one.keys.nbytes + one.values.nbytes)
            self.cache = lazy_cache(model, rows, min(self.limit, max(4 * GRAIN, rounded(AT_FIRST // per_position))))
        self.logits = torch.zeros(rows, model.config.vocab_size, device=model.device)
        self.running = 0
        self.at = np.zeros(rows, dtype=np.int64)
        """Positions of each row that are in the cache."""
        self.tokens = np.zeros(rows, dtype=np.int64)
        """The token that each row feeds next."""

    @property
    def attended(self) -> int:
        """Positions that the next step must attend over, rounded up."""
        return rounded(int(self.at[: self.running].max()) + 1)

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

    def close_gaps(self, gaps: Sequence[int]) -> list[tuple[int, int]]:
        """Fill `gaps` with the last running rows and shrink. Returns the moves (from, to)."""
        left = set(gaps)
        moves = []
        for gap in sorted(gaps):
            while self.running and self.running - 1 in left:
                self.running -= 1
                left.remove(self.running)
            if gap not in left:
                break
            self.running -= 1
            left.remove(gap)
            moves.append((self.running, gap))
        for source, target in moves:
            # One row at a time: selecting several of a part of the buffer would first copy the whole part.
            length = int(self.at[source])
            for buffer in (self.cache.keys, self.cache.values):
                buffer[:, target, :, :length] = buffer[:, source, :, :length]
            self.at[target], self.tokens[target] = self.at[source], self.tokens[source]
        return moves
