"""A digest of weights, to prove that a sampler holds what a trainer sent.

Not covered: where the weights travel (see `TorchEngine.load`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import xxhash
from torch import Tensor


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """A digest of names, shapes, types and bytes of all tensors, equal where the weights are equal bit for bit."""
    digest = xxhash.xxh3_128()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
