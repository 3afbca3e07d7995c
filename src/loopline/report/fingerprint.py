"""Whether a run's page is still true, found out without reading the run.

    fingerprint(run_dir)     # changes when a stage's state or content, a growing curve, or the report's code changes

It reads a handful of small files and imports nothing heavy, so that a run with nothing to do ends at once. Not
covered: damage to artifacts (see `loopline verify`).
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from loopline.base.errors import UserError
from loopline.store.lease import is_running

HERE = Path(__file__).parent


@cache
def code_version() -> str:
    """sha256 over the report's own modules and templates: a page written by other code is out of date."""
    files = sorted(file for file in HERE.rglob("*") if file.suffix in (".py", ".html", ".css"))
    content = hashlib.sha256()
    for file in files:
        content.update(file.relative_to(HERE).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return content.hexdigest()


def fingerprint(run_dir: Path) -> str:
    """sha256 over everything that the page shows or would show differently. Raises `UserError` when there is no run."""
    board = run_dir / "run.json"
    if not board.exists():
        raise UserError(f"There is no run in {run_dir}", "start one with `loopline run laptop`, or name it with --dir")
    content = hashlib.sha256(code_version().encode())
    content.update(board.read_bytes())
    content.update(str(is_running(run_dir)).encode())
    for curve in sorted((run_dir / "work").glob("*/out/log/metrics.jsonl")):
        content.update(f"{curve.parts[-4]} {curve.stat().st_size}\n".encode())
    return content.hexdigest()
