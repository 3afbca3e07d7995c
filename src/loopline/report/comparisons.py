"""What each step of the line changed: paired comparisons of two checkpoints on the same held-out tasks.

    rows = comparisons(run)

Every evaluated checkpoint is compared with the nearest evaluated one that it was made from (else the one evaluated
before it), and beside its `control` where its stage recorded one: all steps, losses too. Computed from the items of the
evaluations by the test that the release uses. `a` is the later of the two and `difference` is a minus b. `p` is the
plain p-value and `better` ("a", "b" or None) its verdict at 5%; `p_holm` and `better_holm` are adjusted for all
comparisons of the same pair and metric. Not covered: bits per byte (see the loop's decision).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from loopline.base.files import read_jsonl
from loopline.evaluation.statistics import holm
from loopline.release.evidence import compare, item_of, names_of
from loopline.report.run import Run

Row = dict[str, Any]
SEED = 0
"""Of the tests that resample: fixed, so that the same items give the same numbers in every report."""
HARNESS = "What the searched harness added to the first one"


@dataclass(frozen=True)
class Answers:
    """Graded answers of one checkpoint to the held-out tasks."""

    name: str
    items: Sequence[Row]
    tasks: str | None
    """Digest of the task set they are answers to."""


def comparisons(run: Run) -> list[Row]:
    """Every comparison that the finished stages allow: task sets and tags, all modes."""
    rows: list[Row] = []
    evaluated = run.evaluations()
    known = {name: _answers(run, name, stage) for name, stage in evaluated.items()}
    for first, second, made in pairs_of(run, list(evaluated)):
        question = f"What {first} changed, made from {second}" if made else f"{first} beside {second}, evaluated before"
        rows += compare_pair(known[first], known[second], question)
    for name in evaluated:
        control = _control(run, name)
        if control in known and (name, control) not in {(row["a"], row["b"]) for row in rows}:
            rows += compare_pair(known[name], known[control], f"{name} beside its control")
    return rows + _harness(run)


def pairs_of(run: Run, evaluated: Sequence[str]) -> list[tuple[str, str, bool]]:
    """(checkpoint, what it is compared with, whether it was made from that) in the order of the line; the first one
    stands alone."""
    out = []
    for number, name in enumerate(evaluated):
        parent = made_from(run, name, set(evaluated))
        before = parent or (evaluated[number - 1] if number else None)
        if before is not None:
            out.append((name, before, parent is not None))
    return out


def made_from(run: Run, name: str, wanted: set[str]) -> str | None:
    """The nearest of the `wanted` nodes that a node was made from, a release counting as its champion."""
    by_name = {row.name: row for row in run.rows}
    layer, seen = [name], {name}
    while layer:
        following = []
        for node in layer:
            row = by_name.get(node)
            parents = [] if row is None else [parent for parent in row.inputs.values() if parent not in seen]
            if row is not None and row.kind == "release":
                decision = run.json(node, "release.json")
                parents = [] if decision is None else [str(decision["champion"])]
            for parent in parents:
                if parent in wanted and parent != name:
                    return parent
                seen.add(parent)
                following.append(parent)
        layer = following
    return None


def _control(run: Run, name: str) -> str | None:
    """The node that a finished stage names as its control."""
    artifact = run.artifacts.get(name)
    found = None if artifact is None else artifact.meta.get("metrics", {}).get("control")
    return found if isinstance(found, str) else None


def compare_pair(a: Answers | None, b: Answers | None, question: str) -> list[Row]:
    """All comparisons of two checkpoints; none when one is missing or they answered different task sets."""
    if a is None or b is None or (a.tasks and b.tasks and a.tasks != b.tasks):
        return []
    rows: list[Row] = []
    for mode in dict.fromkeys(row["mode"] for row in a.items):
        measured: list[Row] = []
        left, right = (
            [item_of(row, tuple(row.get("tags", ()))) for row in side.items if row["mode"] == mode] for side in (a, b)
        )
        tags = sorted({f"tag:{tag}" for item in left for tag in item.tags})
        for task in [*tags, *names_of(left)]:
            found = compare(left, right, task, SEED)
            if found is not None:
                sides = {"a": a.name, "b": b.name, "task": task, "metric": f"{mode} pass@1", "seed": SEED}
                measured.append({**sides, **asdict(found)})
        rows += _adjusted(measured, question)
    return rows


def _adjusted(rows: list[Row], question: str) -> list[Row]:
    adjusted = holm([row["p"] for row in rows])
    return [
        {**row, "p_holm": p, "better_holm": row["better"] if p < 0.05 else None, "question": question}
        for row, p in zip(rows, adjusted, strict=True)
    ]


def _answers(run: Run, name: str, stage: str) -> Answers | None:
    """The held-out answers of an evaluation; those of all parts where it has no held-out ones."""
    file = run.file(stage, "items.jsonl")
    if file is None:
        return None
    rows = read_jsonl(file)
    held = [row for row in rows if row.get("part") == "heldout"] or rows
    tasks = run.artifacts[stage].meta.get("inputs", {}).get("tasks", {}).get("digest")
    return Answers(name, held, tasks)


def _harness(run: Run) -> list[Row]:
    """The harness stages' own comparisons, the winner named by side like everywhere else."""
    rows = []
    for node in run.of_kind("harness"):
        for row in (run.json(node.name, "summary.json") or {}).get("comparisons", []):
            better = {row["a"]: "a", row["b"]: "b"}.get(row["better"])
            rows += _adjusted([{"ungradable": 0, **row, "better": better}], HARNESS)
    return rows
