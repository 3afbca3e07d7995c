"""The number of threads that the operations of one Python thread use.

    with own_threads(1):
        ...                     # here alone; whatever else computes in the process keeps its own number

`torch.set_num_threads` changes MKL's number for the whole process; this sets OpenMP's and MKL's for the calling thread.
Not covered: other backends than these two, where it changes nothing (`can_own_threads` tells).
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@functools.cache
def _setters() -> tuple[Any, Any] | None:
    """Functions that set the number of threads of the calling thread, of OpenMP and of MKL; None without them."""
    import torch

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


def can_own_threads() -> bool:
    """Whether the libraries let a thread have its own number."""
    return _setters() is not None


@contextmanager
def own_threads(count: int | None) -> Iterator[None]:
    """Operations of the calling thread use `count` threads, and afterwards what they used before.

    Changes nothing for None, or where the libraries do not offer it.
    """
    import torch

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
