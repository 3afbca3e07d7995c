"""Attention within the sequences of packed rows, without computing what a mask would throw away.

    segments = Segments.of(sequences_BT)
    hidden_BTD = decoder(tokens_BT, segments=segments)

Every layer but attention sees rows without padding. For attention the sequences of a batch are laid side by side in a
few buckets of like length, each plain causal: a sequence of L ids costs about L^2 / 2 pairs where a row of T under a
mask costs L T. What is gathered is copied, forward and back, by plain index operations that use each id once. Axes: N
ids of the batch, empty places included; M places in all buckets, padding included. After the variable-length kernels
for GPUs (arXiv:2205.14135), for any device. Not covered: sequences that share their beginning (see
`training.prefixes`; they keep a mask), caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

STEP = 8
"""Lengths of buckets are multiples of this."""
BUCKET_PAIRS = 8192
"""What a bucket costs by itself, in pairs of query and key."""


@dataclass(frozen=True)
class Segments:
    """Where the ids of a packed batch are in the buckets, and back."""

    shapes: tuple[tuple[int, int], ...]
    """Of each bucket: sequences, length."""
    places_M: Tensor
    """For each place in the buckets the id, in the flattened (B, T); 0 for padding."""
    inverse_N: Tensor
    """For each id its place in the buckets; 0 for empty ones."""
    padding: Tensor
    """Places in the buckets without an id."""
    empty: Tensor
    """Places of the batch without an id."""

    @classmethod
    def of(cls, sequences_BT: Tensor) -> Segments:
        """Buckets for a batch on the CPU: the number of each id's sequence, -1 where empty.

        The ids of a sequence are adjacent.
        """
        owners = sequences_BT.reshape(-1).numpy()
        inside = np.nonzero(owners >= 0)[0]
        starts_at = np.nonzero(np.diff(owners[inside], prepend=-1))[0]
        starts = inside[starts_at]
        lengths = np.diff(starts_at, append=len(inside))
        order = np.argsort(-lengths, kind="stable")
        places: list[np.ndarray] = []
        shapes: list[tuple[int, int]] = []
        first = 0
        for count, length in bucket_shapes(lengths[order].tolist()):
            members = order[first : first + count]
            table = starts[members, None] + np.arange(length)
            places.append(np.where(np.arange(length) < lengths[members, None], table, -1).reshape(-1))
            shapes.append((count, length))
            first += count
        flat = np.concatenate(places)
        taken = np.nonzero(flat >= 0)[0]
        inverse = np.zeros(len(owners), dtype=np.int64)
        inverse[flat[taken]] = taken
        return cls(
            tuple(shapes),
            torch.from_numpy(np.maximum(flat, 0)),
            torch.from_numpy(inverse),
            torch.from_numpy(np.nonzero(flat < 0)[0]),
            torch.from_numpy(np.nonzero(owners < 0)[0]),
        )

    @property
    def pairs(self) -> float:
        """What attention costs, in pairs of query and key."""
        return price(self.shapes)

    def to(self, device: torch.device | str) -> Segments:
        """The same on `device`."""
        moved = (self.places_M, self.inverse_N, self.padding, self.empty)
        return Segments(self.shapes, *(tensor.to(device, non_blocking=True) for tensor in moved))

    def gather(self, x_NX: Tensor) -> list[Tensor]:
        """Rows of `x_NX` by bucket: (sequences, length, X) each; what padding holds means nothing."""
        apply: Any = _Rearrange.apply
        x_MX: Tensor = apply(x_NX, self.places_M, self.inverse_N, None, self.empty)
        parts = x_MX.split([count * length for count, length in self.shapes])
        return [part.view(*shape, -1) for part, shape in zip(parts, self.shapes, strict=True)]

    def scatter(self, parts: Sequence[Tensor]) -> Tensor:
        """What `gather` took apart, (N, X); 0 at empty places."""
        apply: Any = _Rearrange.apply
        x_MX = torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])
        x_NX: Tensor = apply(x_MX, self.inverse_N, self.places_M, self.empty, self.padding)
        return x_NX


class _Rearrange(torch.autograd.Function):
    """Rows in another order. Every row but padding goes to one place, so that going back is a selection, too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, back: Tensor, blank: Tensor | None, blank_back: Tensor) -> Tensor:
        ctx.save_for_backward(back, blank_back)
        out = x.index_select(0, index)
        return out if blank is None else out.index_fill_(0, blank, 0.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        back, blank = ctx.saved_tensors
        return gradients[0].index_select(0, back).index_fill_(0, blank, 0.0), None, None, None, None


def price(shapes: Sequence[tuple[int, int]]) -> float:
    """Pairs of query and key that buckets of (sequences, length) cost."""
    return sum(BUCKET_PAIRS + count * length * length / 2 for count, length in shapes)


def bucket_shapes(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """(sequences, length) of the buckets that cost least, for lengths in descending order.

    A bucket holds neighbours in that order and is as long as its first, rounded up.
    """
    rounded = [-(-length // STEP) * STEP for length in lengths]
    sizes, counts = np.unique(rounded, return_counts=True)
    kinds = list(zip(sizes[::-1].tolist(), counts[::-1].tolist(), strict=True))
    best = [0.0] + [float("inf")] * len(kinds)
    begin = [0] * len(best)
    for start, (longest, _) in enumerate(kinds):
        count = 0
        for end in range(start + 1, len(kinds) + 1):
            count += kinds[end - 1][1]
            cost = best[start] + price([(count, longest)])
            if cost < best[end]:
                best[end], begin[end] = cost, start
    shapes = []
    end = len(kinds)
    while end:
        start = begin[end]
        shapes.append((sum(count for _, count in kinds[start:end]), kinds[start][0]))
        end = start
    return shapes[::-1]
