"""How fast this machine is: FLOP/s of a matrix product, and of training steps of a given shape.

Used only to turn a budget in minutes into FLOPs and to predict wall time; nothing here enters a plan made from FLOPs.
Not covered: several devices, steady-state throttling (a run of seconds cannot show it).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from loopline.model.config import ModelConfig
from loopline.model.decoder import Decoder


def matmul_flops(size: int = 512, seconds: float = 0.3) -> float:
    """Median FLOP/s of a float32 product of two `size` x `size` matrices, measured for about `seconds`."""
    left, right = torch.ones(size, size), torch.ones(size, size)
    times = _time(lambda: left @ right, seconds)
    return 2 * size**3 / statistics.median(times)


def training_tokens_per_second(
    model: ModelConfig, sequence_length: int, batch_tokens: int, seconds: float = 2.0
) -> float:
    """Median tokens/s of forward, loss and backward of a fresh decoder of this shape."""
    decoder = Decoder(model).initialize(torch.Generator().manual_seed(0))
    rows = max(1, min(batch_tokens, 8192) // sequence_length)
    ids = torch.zeros(rows, sequence_length, dtype=torch.long)

    def step() -> None:
        torch.autograd.backward(decoder.logits(decoder(ids)).float().logsumexp(-1).mean())

    return rows * sequence_length / statistics.median(_time(step, seconds))


def round_flops(flops: float) -> float:
    """`flops` to two significant digits, rounded down: small wobbles of the clock give the same budget."""
    text = f"{flops:.6e}"
    digits, exponent = text.split("e")
    return float(f"{int(float(digits) * 10) / 10}e{exponent}")


def _time(step: Callable[[], object], seconds: float) -> list[float]:
    """Times of repeated calls after one warm-up call, for about `seconds` but at least three calls."""
    step()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return times
