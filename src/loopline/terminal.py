"""What commands print: progress on standard error, tables, and the options they share. Imports nothing heavy."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def say(text: str) -> None:
    """A line for people, at once."""
    print(text, file=sys.stderr, flush=True)


def print_table(columns: list[str], rows: list[list[str]]) -> None:
    """A table on standard output; nothing without rows."""
    if not rows:
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def readable_bytes(size: float | None) -> str:
    """A size for people; empty where it is not known."""
    if size is None:
        return ""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def readable_seconds(seconds: float | None) -> str:
    """A time for people; empty where it is not known."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
