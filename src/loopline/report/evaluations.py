"""Held-out results as the report lists them, and as a table of checkpoints by tasks.

    rows = evaluations(run)              # one row per checkpoint, task and metric
    table(rows, "sampled pass@1")

Not covered: how they are measured (see `evaluation.evaluate`), whether they differ (see `report.comparisons`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loopline.report.run import Run

Row = dict[str, Any]
FIELDS = ("checkpoint", "task", "metric", "n", "value", "low", "high", "seed", "ungradable")
BITS = "bits_per_byte"


def evaluations(run: Run) -> list[Row]:
    """Every evaluation of every finished stage that has any, in the order of the line.

    `stage` is the stage that measured it; `value`, `low` and `high` are None where nothing could be graded.
    """
    rows = []
    for status in run.rows:
        if status.kind not in ("evaluate", "harness"):
            continue
        summary = run.json(status.name, "summary.json") or {}
        for row in summary.get("evaluations", []):
            if row.get("part", "heldout") == "heldout":
                named = {field: row.get(field) for field in FIELDS}
                # A checkpoint goes by its node, since equal recipes may have made it under another name.
                name = status.inputs.get("checkpoint", row["checkpoint"]) if status.kind == "evaluate" else None
                rows.append({**named, "checkpoint": name or row["checkpoint"], "stage": status.name})
    return rows


def metrics_of(rows: Sequence[Row]) -> list[str]:
    """The task metrics that occur, in order."""
    return list(dict.fromkeys(str(row["metric"]) for row in rows if row["metric"] != BITS))


def table(rows: Sequence[Row], metric: str) -> dict[str, Any]:
    """{"columns": tasks, "rows": [{"checkpoint", "cells": [evaluation or None]}]} of one metric.

    Tags, which pool task sets, come first; the others keep the order in which they were measured.
    """
    chosen = [row for row in rows if row["metric"] == metric]
    tasks = list(dict.fromkeys(str(row["task"]) for row in chosen))
    columns = sorted(tasks, key=lambda task: not task.startswith("tag:"))
    by_place = {(row["checkpoint"], row["task"]): row for row in chosen}
    checkpoints = list(dict.fromkeys(str(row["checkpoint"]) for row in chosen))
    return {
        "metric": metric,
        "columns": columns,
        "rows": [
            {"checkpoint": name, "cells": [by_place.get((name, task)) for task in columns]} for name in checkpoints
        ],
    }


def bits_per_byte(rows: Sequence[Row]) -> list[Row]:
    """Held-out text: {"checkpoint", "source", "n", "value", "low", "high", "seed"}; n counts windows, lower is
    better."""
    return [
        {"source": row["task"], **{key: row[key] for key in ("checkpoint", "n", "value", "low", "high", "seed")}}
        for row in rows
        if row["metric"] == BITS
    ]
