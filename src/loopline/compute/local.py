"""This machine: threads, device and determinism of the process that runs a stage.

    threads = prepare("cpu", None)

On the CPU equal inputs then give equal bytes for equal numbers of threads. Not covered: several processes.
"""

from __future__ import annotations

import os

from loopline.base.errors import UserError


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def prepare(device: str, threads: int | None) -> int:
    """Set torch up and return the number of threads. Raises `UserError` when the device is missing."""
    import torch

    count = threads or available_cores()
    torch.set_num_threads(count)
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("compute.device is cuda, but torch finds no CUDA device", "set compute.device to cpu")
    if device == "cpu":
        # As `use_deterministic_algorithms(True)`, which takes a second to load the compiler that nothing here uses.
        torch.set_deterministic_debug_mode("error")
    return count
