"""What the line decided: which checkpoint is released, and whether each loop's candidate replaces what it would follow.

    release(run)     # None until the release stage is done
    loops(run)       # the decisions there are

Everything is read from the artifacts that decided; nothing is decided again here.
"""

from __future__ import annotations

from typing import Any

from loopline.base.files import read_json
from loopline.report.run import Run

SELECTIONS = {
    "accepted.json": "Answers kept as training data, and why others were not",
    "preferences.json": "Prompts by where their preference pair came from, or why there is none",
}
"""Files in which stages say how they chose their own training data."""
GATES = ("gate", "gate_benchmarks")


def release(run: Run) -> dict[str, Any] | None:
    """{"path", "model", "champion", "objective", "reasons", "gates", "candidates", "comparisons", "passed",
    "reference", "latency"}.

    `path` is the release artifact and `model` the checkpoint in it, both relative to the run directory. `latency` was
    measured once on the machine of the run; it decided nothing.
    """
    node = run.last("release")
    decision = run.json(node, "release.json")
    if decision is None:
        return None
    path = run.where(node)
    row = next((row for row in decision["candidates"] if row["name"] == decision["champion"]), None)
    return {
        **decision,
        "path": path,
        "model": f"{path}/{decision['path']}",
        "value": None if row is None else row["objective"],
        "card": run.file(node, "MODEL_CARD.md") is not None,
        "latency": run.json(node, "log/latency.json"),
    }


def loops(run: Run) -> list[dict[str, Any]]:
    """{"name", "stage", "before", "after", "decision", "reasons", "comparisons"} of each loop that was turned."""
    found = []
    for row in run.of_kind(*GATES):
        decision = run.json(row.name, "decision.json")
        if decision is not None:
            found.append({"final_check": None, "control": None, **decision, "stage": row.name})
    return found


def mixture(run: Run) -> list[dict[str, Any]]:
    """The benchmark loop's mixture: {"source", "before", "after", "epochs", "reason"} per source."""
    value = run.json(run.last("remix"), "mixture.json")
    if value is None:
        return []
    reasons = {text.partition(":")[0]: text for text in value["reasons"]}
    return [
        {
            "source": source,
            "before": value["before"].get(source),
            "after": weight,
            "epochs": value["epochs"].get(source),
            # "source: 0.2 -> 0.3 (why)": the numbers are in columns of their own.
            "reason": reasons.get(source, "").partition("(")[2].removesuffix(")"),
        }
        for source, weight in sorted(value["after"].items())
    ]


def selections(run: Run) -> list[dict[str, Any]]:
    """How many rows the steps that choose their own training data kept: {"stage", "what", "counts": {name: n}}."""
    found = []
    for row in run.rows:
        for name, what in SELECTIONS.items():
            file = run.file(row.name, name)
            if file is not None:
                found.append({"stage": row.name, "what": what, "counts": _numbers(read_json(file))})
    return found


def _numbers(value: dict[str, Any]) -> dict[str, int]:
    out: dict[str, int] = {}
    for name, item in value.items():
        if isinstance(item, dict):
            out |= {f"{name}: {key}": number for key, number in _numbers(item).items()}
        elif isinstance(item, int):
            out[name] = item
    return out
