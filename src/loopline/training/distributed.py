"""Several processes as one: each takes its share of a step's micro-batches, and gradients are summed over all.

The sum is divided by the normalizer of the whole step, so the gradient does not depend on the number of processes.
Works with whatever process group the launcher made; without one a process is alone. Not covered: launching, sharded
weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

T = TypeVar("T")


def world() -> tuple[int, int]:
    """(this process's number, how many there are)."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def own_share(items: Sequence[T]) -> Sequence[T]:
    """The items of this process."""
    rank, size = world()
    return items[rank::size]


def sum_over_processes(
    model: nn.Module, normalizer: float, metrics: dict[str, float]
) -> tuple[float, dict[str, float]]:
    """Sum gradients in place, and the normalizer and metrics, over all processes.

    A process that had no micro-batch contributes zeros, so nobody waits for it.
    """
    if world()[1] == 1:
        return normalizer, metrics
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([parameter.grad.reshape(-1) for parameter in parameters if parameter.grad is not None])
    dist.all_reduce(flat)
    start = 0
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.copy_(flat[start : start + parameter.numel()].view_as(parameter))
        start += parameter.numel()
    gathered: list[tuple[float, dict[str, float]]] = [(0.0, {})] * world()[1]
    dist.all_gather_object(gathered, (normalizer, metrics))
    summed: dict[str, float] = {}
    for _, values in gathered:
        for name, value in values.items():
            summed[name] = summed.get(name, 0.0) + value
    return sum(part for part, _ in gathered), summed
