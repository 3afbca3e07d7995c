"""Threads that compute the parts of one function at the same time.

    team = Team(2)
    team(function, 2, x, y)             # function(0, 2, x, y) here and function(1, 2, x, y) beside it

For functions that hold no interpreter lock, such as compiled ones; handing a part over takes some 50 microseconds.
Not covered: dividing the work, which the function does by the number of its part.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any


class Team:
    """Up to `size` threads, the calling one included."""

    def __init__(self, size: int) -> None:
        self.size = max(1, size)
        self._others = ThreadPoolExecutor(self.size - 1, "team") if self.size > 1 else None

    def __call__(
        self, function: Callable[..., None], parts: int, *arguments: Any, release: Callable[[], None] | None = None
    ) -> None:
        """Call `function(part, parts, *arguments)` for every part, at most `size`; returns when all have.

        `release` frees parts that wait for one that will not come: it is called when this thread's part raises.
        """
        if parts == 1 or self._others is None:
            function(0, 1, *arguments)
            return
        running = []
        try:
            for part in range(1, parts):
                running.append(self._others.submit(function, part, parts, *arguments))
            function(0, parts, *arguments)
        except BaseException:
            if release is not None:
                release()
            raise
        finally:
            wait(running)
        for other in running:
            other.result()
