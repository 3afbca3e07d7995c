"""Products of a few rows with a weight matrix, as decoding makes them by the thousand.

    weight = Weight(linear.weight, linear.bias, blocked=True)
    weight.multiply(x_RI, out_RO)

The usual routine brings the matrix into its own order at every call, which for 2 to 32 rows takes as long as the
product. `blocked` keeps a copy in oneDNN's order: 1.5 to 4 times as fast at widths of 384 to 1024, at the price of the
weights' memory once more; narrower matrices gain nothing. Sums are rounded in another order. Not covered: other devices
and types than single precision on the CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def can_block() -> bool:
    """Whether torch was built with what `blocked` needs."""
    return bool(torch._C._has_mkldnn) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class Weight:
    """A linear layer's matrix (O, I) and bias."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, blocked: bool = False) -> None:
        self.weight, self.bias, self.turned = weight, bias, weight.t()
        self.blocked: Any = None
        self._version = -1
        if blocked:
            self._block()

    def _block(self) -> None:
        # A tensor counts its changes, whoever makes them: an optimizer, or new weights that are loaded.
        self._version = self.weight._version
        self.blocked = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), None)

    def multiply(self, x: Tensor, out: Tensor) -> None:
        """x times the matrix, plus the bias, into `out`."""
        if self.blocked is not None:
            if self.weight._version != self._version:
                self._block()
            out.copy_(torch.ops.mkldnn._linear_pointwise(x, self.blocked, self.bias, "none", [], ""))
        elif self.bias is None:
            torch.mm(x, self.turned, out=out)
        else:
            torch.addmm(self.bias, x, self.turned, out=out)
