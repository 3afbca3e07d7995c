"""Progress of long work: a bar with ETA on a terminal, a line every fifteen seconds elsewhere.

Lines go to standard error, so that `--json` on standard output stays clean.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Column

LINE_EVERY = 15.0
"""Seconds between two lines where there is no terminal."""

ESTIMATE_FROM = 0.02
"""Share of the work that must be done before a line says how long the rest takes: the first units warm things up."""


class Progress:
    """Counts done work and shows it."""

    def __init__(self, description: str, total: float, tick: Callable[[], None]) -> None:
        self.description, self.total, self.done, self.text = description, total, 0.0, ""
        self._tick = tick

    def advance(self, n: float = 1) -> None:
        """Count `n` more units as done."""
        self.done += n
        self._tick()

    def note(self, text: str) -> None:
        """Show a short text beside the bar."""
        self.text = text


class _LineProgress(Progress):
    def __init__(self, description: str, total: float, tick: Callable[[], None], console: Console) -> None:
        super().__init__(description, total, tick)
        self.console = console
        self.started = self.shown = time.monotonic()

    def advance(self, n: float = 1) -> None:
        super().advance(n)
        now = time.monotonic()
        if now - self.shown >= LINE_EVERY and self.done > 0:
            self.shown = now
            left = (now - self.started) * (self.total - self.done) / self.done
            share = self.done / max(self.total, 1e-9)
            rest = f", about {left:.0f} s left" if share >= ESTIMATE_FROM else ""
            self.console.print(f"  {self.description}: {share:.0%}{rest}  {self.text}", highlight=False)


class _BarProgress(Progress):
    def __init__(self, description: str, total: float, tick: Callable[[], None], bar: RichProgress) -> None:
        super().__init__(description, total, tick)
        self.bar = bar
        self.task = bar.add_task(description, total=total, note="")

    def advance(self, n: float = 1) -> None:
        super().advance(n)
        self.bar.update(self.task, completed=self.done, note=self.text)


@contextmanager
def show_progress(description: str, total: float, tick: Callable[[], None]) -> Iterator[Progress]:
    """A `Progress` for as long as the block runs; `tick` is called at every advance."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _LineProgress(description, total, tick, console)
        return
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        # The note takes the columns that are left and no more, however long it is.
        TextColumn("{task.fields[note]}", style="dim", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
    )
    with RichProgress(*columns, console=console, transient=True, expand=True) as bar:
        yield _BarProgress(description, total, tick, bar)
