"""What the GPU benchmarks share: the refusal to run without one, the machine's peak and bandwidth, Qwen3-0.6B's shape.

    device = device.require(arguments)                 # a CUDA device, or the CPU with --dry
    device.product_peak(torch.bfloat16), device.bandwidth()

`--dry` runs a script end to end on the CPU with a tiny model, to see that it works; its numbers mean nothing and are
not written. Not covered: several GPUs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import common
import torch
import worlds

from loopline.model.config import ModelConfig
from loopline.model.decoder import Decoder


def parse(description: str) -> argparse.Namespace:
    """The arguments of a GPU benchmark."""
    return common.parse(
        description,
        lambda parser: (
            parser.add_argument("--dry", action="store_true", help="on the CPU, tiny, nothing written"),
            parser.add_argument("--repeats", type=int, default=3),
        ),
    )


def require(arguments: argparse.Namespace) -> torch.device:
    """Where to run. Exits with a sentence where there is no GPU and `--dry` was not given."""
    if arguments.dry:
        arguments.quick = True
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise SystemExit("This benchmark needs a CUDA device and found none. Run it with --dry to try it on the CPU.")
    return torch.device("cuda")


def shape(arguments: argparse.Namespace) -> dict[str, int]:
    """Qwen3-0.6B's, or a tiny one."""
    return worlds.SHAPES["tiny" if arguments.dry else "600m"]


def model(arguments: argparse.Namespace, length: int, device: torch.device, dtype: torch.dtype) -> Decoder:
    """A model of random weights."""
    config: ModelConfig = worlds.model_config(shape(arguments), length)
    return Decoder(config).initialize(torch.Generator().manual_seed(0)).to(device, dtype)


def synchronize(device: torch.device) -> None:
    """Wait for what runs."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], Any], device: torch.device, times: int = 10) -> float:
    """Seconds of `work`, the best of `times` after two that do not count."""
    best = float("inf")
    for number in range(times + 2):
        synchronize(device)
        began = time.perf_counter()
        work()
        synchronize(device)
        if number >= 2:
            best = min(best, time.perf_counter() - began)
    return best


def product_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of the best square product in `dtype`."""
    best = 0.0
    for size in (256,) if device.type == "cpu" else (4096, 8192, 12288):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        best = max(best, 2 * size**3 / seconds(lambda a=a, b=b: a @ b, device))
    return best


def bandwidth(device: torch.device) -> float:
    """Bytes per second of a copy, read and written."""
    count = 1 << (20 if device.type == "cpu" else 31)
    source = torch.empty(count, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * count / seconds(lambda: target.copy_(source), device)


def name(device: torch.device) -> str:
    """The device's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
