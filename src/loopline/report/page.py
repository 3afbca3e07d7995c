"""The report page: one HTML file beside the run, without scripts, fonts or anything else from elsewhere.

    write_report(Path("runs/laptop"))       # writes runs/laptop/report.html
    refresh_report(Path("runs/laptop"))     # the same, unless the page is still true

The page carries the fingerprint of what it shows, so a refresh with nothing to do costs milliseconds: the heavy parts
are imported only when there is something to write. Not covered: what the page says (see `report.data`).
"""

from __future__ import annotations

import re
from pathlib import Path

from loopline.base.files import write_bytes
from loopline.report.fingerprint import fingerprint

PAGE = "report.html"
STAMP = re.compile(rb'<meta name="loopline-report" content="([0-9a-f]{64})">')


def write_report(run_dir: Path) -> Path:
    """Write the page of a run, finished or not, and return its path. Raises `UserError` when there is no run."""
    # Taken first: what changes while the run is read makes the page out of date, not silently up to date.
    stamp = fingerprint(run_dir)

    from loopline.report.data import build_report
    from loopline.report.render import render

    html = render(build_report(run_dir), stamp)
    page = run_dir / PAGE
    # Foreign text may hold halves of surrogate pairs, which UTF-8 has no bytes for.
    write_bytes(page, html.encode("utf-8", errors="backslashreplace"))
    return page


def refresh_report(run_dir: Path) -> Path:
    """Write the page only if it is missing or no longer true; returns its path either way."""
    page = run_dir / PAGE
    if page.exists():
        with page.open("rb") as file:
            found = STAMP.search(file.read(2048))
        if found and found.group(1).decode() == fingerprint(run_dir):
            return page
    return write_report(run_dir)
