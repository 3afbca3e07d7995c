"""The key/value cache: static buffers that every architecture writes at each row's own positions.

    cache = model.new_cache(rows, length)
    hidden_BTD = model(tokens_BT, positions_BT=positions_BT, mask=mask, cache=cache)

Rows of different prompt lengths share one batch without padding on the left, so a row's numbers do not depend on who
sits beside it. Not covered: paging, quantized keys, states that are not keys and values (recurrent layers).
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class CacheShape(Protocol):
    """What of a model's config decides the size of its cache."""

    @property
    def num_hidden_layers(self) -> int: ...
    @property
    def num_key_value_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...


class KeyValueCache:
    """Keys and values of every layer for a batch of rows, written at each row's own positions.

    Shapes: (L, B, K, S, C) for both. Rows may be repeated or dropped with `select`.
    """

    def __init__(self, config: CacheShape, rows: int, length: int, device: torch.device, dtype: torch.dtype) -> None:
        shape = (config.num_hidden_layers, rows, config.num_key_value_heads, length, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)

    @property
    def length(self) -> int:
        return self.keys.shape[3]

    def select(self, rows: Tensor) -> None:
        """Keep `rows` (indices, repeats allowed), in that order."""
        self.keys = self.keys.index_select(1, rows)
        self.values = self.values.index_select(1, rows)

    def grow(self, length: int) -> None:
        """Enlarge it to `length` positions."""
        extra = length - self.length
        if extra > 0:
            self.keys = F.pad(self.keys, (0, 0, 0, extra))
            self.values = F.pad(self.values, (0, 0, 0, extra))


def write_at(buffer_BKSC: Tensor, new_BKTC: Tensor, positions_BT: Tensor) -> None:
    """Copy `new_BKTC` into the buffer in place, each row at its own positions."""
    index = positions_BT[:, None, :, None].expand(-1, new_BKTC.shape[1], -1, new_BKTC.shape[3])
    buffer_BKSC.scatter_(2, index, new_BKTC)
