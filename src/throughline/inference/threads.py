"""How many threads a step's operations use.

At a million parameters an operation takes some tens of microseconds, and waking a second thread for it takes as long:
on two cores, a step of 128 rows took 17 ms with two threads and 11 ms with one. `own_threads(1)` sets the count of
OpenMP and of MKL for the calling thread alone, so whatever else computes in the process keeps its own. Two halves of
the rows on a thread each were tried: at a million parameters they wait for the interpreter (a quarter slower than one
thread), at 20 and 100 million they gain a tenth on the operations of one, too little for a second batch. Not covered:
processes.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from throughline.model.language_model import LanguageModel

SMALL = 8_000_000
"""Parameters below which operations are too short to be divided among threads."""


@functools.cache
def _setters() -> tuple[Any, Any] | None:
    """Functions that set the number of threads of the calling thread, of OpenMP and of MKL; None without them."""
    found = [part.is_available() for part in (torch.backends.mkl, torch.backends.openmp)]
    if not all(found):
        return None
    libraries = Path(torch.__file__).parent / "lib"
    try:
        openmp = ctypes.CDLL(str(next(libraries.glob("libgomp*.so*")))).omp_set_num_threads
        mkl = ctypes.CDLL(str(libraries / "libtorch_cpu.so")).MKL_Set_Num_Threads_Local
    except (OSError, AttributeError, StopIteration):
        return None
    return openmp, mkl


def step_threads(model: LanguageModel) -> int | None:
    """Threads that a step of `model` should use; None leaves them."""
    small = sum(parameter.numel() for parameter in model.parameters()) < SMALL
    return 1 if small and model.device.type == "cpu" else None


@contextmanager
def own_threads(count: int | None) -> Iterator[None]:
    """Operations of the calling thread use `count` threads, and afterwards what they used before.

    Changes nothing for None, or where the libraries do not offer it.
    """
    setters = _setters()
    if count is None or setters is None or torch.get_num_threads() == count:
        yield
        return
    openmp, mkl = setters
    # Asking also made torch set up this thread, which would otherwise undo what is set here.
    before = torch.get_num_threads()
    openmp(count)
    previous = mkl(count)
    try:
        yield
    finally:
        openmp(before)
        mkl(previous)
