"""A step's micro-batches side by side: each on a thread of its own, whose operations use no second one.

    for gradients, normalizer, metrics in in_order(model, objective, batches, precision, threads=2): ...

Operations of a small model are too short to be divided: at a million parameters two threads that share every operation
use a core and a half, two that take a micro-batch each use both, and a step takes three quarters of the time; at 20
million three quarters to nineteen twentieths, the less the busier the machine (packed rows of 512 ids). Each
micro-batch is computed by one thread and results come in their order, so what is summed does not depend on how many
threads there are. As many micro-batches as threads are held at once. Not covered: other devices than the CPU, where
operations are wide enough.
"""

from __future__ import annotations

import contextlib
import functools
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch
from torch import Tensor, nn

from loopline.compute.threads import can_own_threads, own_threads
from loopline.model.language_model import LanguageModel
from loopline.training.batch import Batch
from loopline.training.objectives import Objective

Gradients = tuple[Tensor | None, ...]
"""By the parameters that are trained, of the summed loss; None where a parameter had no part in it."""
Result = tuple[Gradients, float, dict[str, float]]
"""Gradients, normalizer, mean metrics."""


def possible(model: nn.Module, batches: Sequence[Batch]) -> bool:
    """Whether there is more than one micro-batch, on a CPU whose libraries let a thread have its own settings."""
    return len(batches) > 1 and next(model.parameters()).device.type == "cpu" and can_own_threads()


def in_order(
    model: LanguageModel, objective: Objective, batches: Sequence[Batch], precision: str, threads: int
) -> Iterator[Result]:
    """The result of every micro-batch, in their order, `threads` of them computed at once.

    The parameters' own gradients are not touched. Raises what computing raised, when none computes any more.
    """
    pool = _pool(threads)
    running: deque[Future[Result]] = deque()
    waiting = deque(batches)
    try:
        while waiting or running:
            while waiting and len(running) <= threads:
                running.append(pool.submit(_compute, model, objective, waiting.popleft(), precision))
            yield running.popleft().result()
    finally:
        for future in running:
            future.cancel()
        wait(running)


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Kept, since a new thread has to ask for all its memory anew."""
    return ThreadPoolExecutor(threads, thread_name_prefix="micro-batches")


def _compute(model: LanguageModel, objective: Objective, batch: Batch, precision: str) -> Result:
    lower = torch.autocast("cpu", torch.bfloat16) if precision == "bfloat16" else contextlib.nullcontext()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with own_threads(1), torch.enable_grad():
        with lower:
            total, count, values = objective.loss(model, batch)
        return torch.autograd.grad(total, parameters, allow_unused=True), count, values


def add_up(model: nn.Module, gradients: Gradients) -> None:
    """Add `gradients` to those that the parameters have."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            continue
        if parameter.grad is None:
            # A copy: two parameters that are only ever added up have one gradient between them.
            parameter.grad = gradient.clone()
        else:
            parameter.grad += gradient
