"""Answers to look at: what the policy sampled during RL, and the same held-out tasks asked of every checkpoint.

    rollouts(run)     # groups of the newest RL stage's rollouts.jsonl, early, in the middle and late
    answers(run)      # held-out tasks with every checkpoint's answer and grade

Chosen by rule, right and wrong alike, never by taste: the first that fits in file order. Not covered: harness traces
(see `report.harness`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loopline.report.run import Run

Row = dict[str, Any]


def rollouts(run: Run) -> list[Row]:
    """Groups of the first, the middle and the last RL step, one per task set and step.

    Each has its task, prompt, share of right samples, and one right and one wrong sample where it has both.
    """
    rows = run.jsonl(run.last("grpo"), "rollouts.jsonl") or []
    steps = sorted({row["step"] for row in rows})
    if not steps:
        return []
    chosen = sorted({steps[0], steps[len(steps) // 2], steps[-1]})
    out = []
    for step in chosen:
        here = [row for row in rows if row["step"] == step]
        for task_set in sorted({row["task_set"] for row in here}):
            groups = [row for row in here if row["task_set"] == task_set]
            # A group with both outcomes shows what the step could learn from.
            out.append(_group(next((row for row in groups if _mixed(row)), groups[0])))
    return out


def _mixed(row: Row) -> bool:
    scores = [output["score"] for output in row["outputs"] if output["score"] is not None]
    return bool(scores) and min(scores) < 1 <= max(scores)


def _group(row: Row) -> Row:
    outputs = row["outputs"]
    right = [output for output in outputs if output["score"] == 1]
    graded = [output for output in outputs if output["score"] is not None]
    wrong = [output for output in graded if output["score"] < 1]
    shown = [*right[:1], *wrong[:1]] or outputs[:1]
    return {
        **{key: row[key] for key in ("step", "task_set", "task", "prompt")},
        "samples": len(outputs),
        "right": len(right),
        "graded": len(graded),
        "outputs": shown,
    }


def answers(run: Run) -> list[Row]:
    """Per task set one held-out task that the checkpoint evaluated last solves and one that it does not.

    Of the solved ones, one that an earlier checkpoint failed comes first. `reference` is the task's written answer.
    """
    tasks = {row["id"]: row for row in run.jsonl(run.last("tasks"), "heldout.jsonl") or []}
    by_checkpoint = {}
    for name, stage in run.evaluations().items():
        items = [item for item in run.jsonl(stage, "items.jsonl") or [] if item["task"] in tasks]
        modes = [mode for mode in ("sampled", "greedy") if any(item["mode"] == mode for item in items)]
        if modes:
            first: dict[str, Row] = {}
            for item in items:
                if item["mode"] == modes[0]:
                    first.setdefault(item["task"], item)
            by_checkpoint[name] = first
    shown = list(by_checkpoint)
    if not shown:
        return []
    last = shown[-1]
    out = []
    for task_set in dict.fromkeys(item["task_set"] for item in by_checkpoint[last].values()):
        for task in _pick(task_set, by_checkpoint, shown, last):
            out.append(_answer(tasks[task], by_checkpoint, shown))
    return out


def _pick(task_set: str, by_checkpoint: Mapping[str, Mapping[str, Row]], shown: Sequence[str], last: str) -> list[str]:
    items = [item for item in by_checkpoint[last].values() if item["task_set"] == task_set]
    right = [item["task"] for item in items if item["score"] == 1]
    wrong = [item["task"] for item in items if item["score"] is not None and item["score"] < 1]
    before = [name for name in shown if name != last]
    gained = [
        task
        for task in right
        if any((by_checkpoint[name].get(task) or {"score": 1})["score"] != 1 for name in before[-3:])
    ]
    return [*(gained or right)[:1], *wrong[:1]]


def _answer(task: Row, by_checkpoint: Mapping[str, Mapping[str, Row]], shown: Sequence[str]) -> Row:
    outputs = []
    for name in shown:
        item = by_checkpoint[name].get(task["id"])
        if item is not None:
            keys = ("output", "score", "flags", "finish", "tokens")
            outputs.append({"checkpoint": name, **{key: item[key] for key in keys}})
    return {
        "task": task["id"],
        "task_set": task["task_set"],
        "prompt": task["messages"][-1]["content"],
        "reference": task.get("answer", ""),
        "mode": next(item["mode"] for items in by_checkpoint.values() if (item := items.get(task["id"]))),
        "outputs": outputs,
    }
