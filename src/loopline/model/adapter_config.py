"""Settings of low-rank adapters. Imports no torch.

Not covered: putting one on a model (see `model.adapter`).
"""

from __future__ import annotations

from pydantic import Field

from loopline.base.config import Config


class LoRAConfig(Config):
    """The shape of an adapter."""

    rank: int = Field(default=16, ge=1)
    """Columns of the two thin matrices."""
    alpha: float = Field(default=32.0, gt=0)
    """The product of the two is scaled by alpha / rank."""
    targets: tuple[str, ...] = ()
    """Names of the linear layers to adapt; empty means every linear layer but the output layer."""
    seed: int = 0
    """Seed of the first matrix's random start (the second starts at zero)."""
    four_bit: bool = False
    """Keep the frozen base in four bits (QLoRA); needs the extra "qlora"."""
