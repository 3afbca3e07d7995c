"""The search over harness programs: every candidate, what it costs, and how attempts under them read.

    harness(run)     # None until the harness stage is done

Not covered: the held-out comparison of first and best, which is with the other comparisons.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loopline.base.files import read_json, read_jsonl
from loopline.report.run import Run

Row = dict[str, Any]
TRACE = ("task", "question", "reference", "answer", "score", "flags", "symptoms", "turns", "tokens", "messages")


def harness(run: Run) -> dict[str, Any] | None:
    """{"first", "winner", "frontier", "candidates", "evaluations", "config", "audit", "traces"}.

    Candidates are judged on development tasks; only the first and the winner see held-out ones ("evaluations").
    """
    node = run.last("harness")
    artifact = run.artifacts.get(node)
    frontier = run.json(node, "frontier.json")
    if artifact is None or frontier is None:
        return None
    folders = sorted(path.parent for path in (artifact / "candidates").glob("*/search.json"))
    traces = []
    for name in dict.fromkeys((frontier["first"], frontier["winner"])):
        file = artifact / "candidates" / name / "traces.jsonl"
        if file.exists():
            traces += [{"candidate": name, **row} for row in choose(read_jsonl(file))]
    return {
        "first": frontier["first"],
        "winner": frontier["winner"],
        "frontier": frontier["frontier"],
        "candidates": [read_json(folder / "search.json") for folder in folders],
        "evaluations": (run.json(node, "summary.json") or {}).get("evaluations", []),
        "config": run.json(node, "harness.json"),
        "audit": run.json(node, "audit.json"),
        "traces": traces,
    }


def choose(rows: Sequence[Row]) -> list[Row]:
    """The first right and the first wrong attempt; of the wrong ones rather one that got to call a tool."""
    right = [row for row in rows if row["score"] == 1]
    wrong = [row for row in rows if row["score"] is not None and row["score"] < 1]
    wrong = sorted(wrong, key=lambda row: not row.get("calls"))
    return [{key: row.get(key) for key in TRACE} for row in [*right[:1], *wrong[:1]]]
