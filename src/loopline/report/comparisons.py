"""What each step of the line changed: paired comparisons of two checkpoints on the same held-out tasks.

    rows = comparisons(run)

Computed from the items of the evaluate artifacts by the test that the release uses. `a` is the later of the two and
`difference` is a minus b. `p` is the plain p-value and `better` ("a", "b" or None) its verdict at 5%; `p_holm` and
`better_holm` are adjusted for all comparisons of the same pair and metric. Not covered: bits per byte (see the loop's
decision).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loopline.base.files import read_json, read_jsonl
from loopline.evaluation.statistics import holm
from loopline.release.evidence import compare, item_of, names_of
from loopline.report.run import Run

Row = dict[str, Any]
SEED = 0
"""Of the bootstrap: fixed, so that the same items give the same interval in every report."""
PAIRS = (
    ("sft", "pretrain", "What fine-tuning added to the base"),
    ("grpo", "sft", "What reasoning RL added"),
    ("rft", "grpo", "What rejection-sampling fine-tuning changed"),
    ("align", "rft", "What alignment changed"),
    ("student", "student_plain", "What the teacher's traces added to the student"),
    ("quantize", "align", "What int8 weights cost"),
)
"""(a, b, the question)."""
TRAFFIC = "What traffic added to the released model"
HARNESS = "What the searched harness added to the first one"


@dataclass(frozen=True)
class Answers:
    """Graded answers of one checkpoint to the held-out tasks."""

    name: str
    items: Sequence[Row]
    tasks: str | None
    """Digest of the task set they are answers to."""


def comparisons(run: Run) -> list[Row]:
    """Every comparison that the finished stages allow: task sets, pooled reasoning and refusals, both modes."""
    known: dict[str, Answers | None] = {}
    rows: list[Row] = []
    for first, second, question in PAIRS:
        for name in (first, second):
            if name not in known:
                known[name] = _evaluated(run, name)
        rows += compare_pair(known[first], known[second], question)
    rows += compare_pair(_evaluated(run, "retrain"), _champion(run), TRAFFIC)
    return rows + _harness(run)


def compare_pair(a: Answers | None, b: Answers | None, question: str) -> list[Row]:
    """All comparisons of two checkpoints; none when one is missing or they answered different task sets."""
    if a is None or b is None or (a.tasks and b.tasks and a.tasks != b.tasks):
        return []
    rows: list[Row] = []
    for mode in ("sampled", "greedy"):
        measured: list[Row] = []
        left, right = (
            [item_of(row, tuple(row.get("tags", ()))) for row in side.items if row["mode"] == mode] for side in (a, b)
        )
        task_sets = sorted(set(names_of(left)) & set(names_of(right)))
        for task in ["tag:reasoning", *task_sets, "tag:must_refuse"]:
            found = compare(left, right, task, SEED)
            if found is not None:
                sides = {
                    "a": a.name,
                    "b": b.name,
                    "task": task.removeprefix("tag:"),
                    "metric": f"{mode} pass@1",
                    "seed": SEED,
                }
                measured.append({**sides, **asdict(found)})
        rows += _adjusted(measured, question)
    return rows


def _adjusted(rows: list[Row], question: str) -> list[Row]:
    adjusted = holm([row["p"] for row in rows])
    return [
        {**row, "p_holm": p, "better_holm": row["better"] if p < 0.05 else None, "question": question}
        for row, p in zip(rows, adjusted, strict=True)
    ]


def _evaluated(run: Run, checkpoint: str) -> Answers | None:
    stage = f"evaluate_{checkpoint}"
    return _answers(run, checkpoint, stage, run.file(stage, "items.jsonl"))


def _champion(run: Run) -> Answers | None:
    """The released checkpoint's own evaluation, as the release carries it."""
    decision = run.file("release", "release.json")
    if decision is None:
        return None
    name = str(read_json(decision)["champion"])
    return _answers(run, name, "release", run.file("release", "evaluation/items.jsonl"))


def _answers(run: Run, name: str, stage: str, file: Path | None) -> Answers | None:
    if file is None:
        return None
    tasks = run.artifacts[stage].meta.get("inputs", {}).get("tasks", {}).get("digest")
    return Answers(name, read_jsonl(file), tasks)


def _harness(run: Run) -> list[Row]:
    """The harness stage's own comparison, its winner named by side like everywhere else."""
    summary = run.json("harness", "summary.json") or {}
    rows = []
    for row in summary.get("comparisons", []):
        better = {row["a"]: "a", row["b"]: "b"}.get(row["better"])
        rows.append({"ungradable": 0, **row, "better": better})
    return _adjusted(rows, HARNESS)
