"""What is known about one candidate: scores per task set, refusal style, size and counted cost.

Reads the files of evaluate artifacts and checkpoint directories; measures nothing. Not covered: tool stability (see
`release.tools`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from loopline.base.errors import UserError
from loopline.base.files import read_jsonl
from loopline.evaluation.statistics import Comparison, Estimate, mean_interval, paired_comparison
from loopline.grading.config import REASONING
from loopline.model.config import ModelConfig

Mode = Literal["sampled", "greedy"]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Size:
    """What a checkpoint costs per generated token, counted from its files."""

    parameters: int
    bytes: int
    """Of the weights file; generating a token reads all of it."""
    flops: int
    """Per token: two per parameter, one multiplication and one addition (Kaplan et al. 2020, arXiv:2001.08361)."""


@dataclass(frozen=True)
class Evidence:
    """One candidate."""

    name: str
    size: Size
    items: tuple[Row, ...]
    """Rows of the evaluation that decides."""
    metrics: Mapping[str, Estimate]
    """Family, `reasoning`, `refusal` (unsafe refused), `over_refusal` (harmless refused)."""
    tools: Mapping[str, Any] | None = None
    answer_tokens: float = 0.0
    """Mean length of an answer in tokens: cost per answer is this times cost per token."""
    extra: Mapping[str, Any] = field(default_factory=dict)


def checkpoint_size(path: Path) -> Size:
    """Parameters, bytes and FLOPs of a checkpoint directory."""
    parameters = ModelConfig.from_huggingface(path).parameters()
    return Size(parameters, (path / "model.safetensors").stat().st_size, 2 * parameters)


def read_items(path: Path, mode: Mode) -> tuple[Row, ...]:
    """The rows of one mode of an evaluate artifact. Raises `UserError` when that mode was not evaluated."""
    rows = tuple(row for row in read_jsonl(path / "items.jsonl") if row["mode"] == mode)
    if not rows:
        raise UserError(
            f"{path / 'items.jsonl'} has no {mode} results", f"evaluate with {mode!r} among `modes`, or change `mode`"
        )
    return rows


def sets_of(rows: Sequence[Row]) -> list[str]:
    """The task sets that occur, sorted."""
    return sorted({str(row["task_set"]) for row in rows})


def scores(rows: Sequence[Row], task_set: str) -> dict[str, float | None]:
    """Task id -> score for a task set; `reasoning` is its three task sets together, `refusal` the unsafe requests."""
    if task_set == "refusal":
        return {str(row["task"]): row["score"] for row in rows if row.get("unsafe")}
    wanted = REASONING if task_set == "reasoning" else (task_set,)
    return {str(row["task"]): row["score"] for row in rows if row["task_set"] in wanted}


def compare(a: Sequence[Row], b: Sequence[Row], task_set: str, seed: int = 0) -> Comparison | None:
    """a against b on the tasks both answered; None when they share no graded task."""
    left, right = scores(a, task_set), scores(b, task_set)
    shared = sorted(left.keys() & right.keys())
    if not any(left[task] is not None and right[task] is not None for task in shared):
        return None
    return paired_comparison([left[task] for task in shared], [right[task] for task in shared], seed)


def refusal_metrics(rows: Sequence[Row], unsafe: Mapping[str, bool]) -> dict[str, Estimate]:
    """`refusal`: share of unsafe requests refused. `over_refusal`: share of harmless ones refused (flag of the grader).

    `unsafe` maps task id to whether the request is unsafe.
    """
    refused: list[float | None] = []
    declined: list[float | None] = []
    for row in rows:
        if row["task_set"] != "safety" or row["task"] not in unsafe:
            continue
        if unsafe[row["task"]]:
            refused.append(row["score"])
        else:
            declined.append(None if row["score"] is None else float("over_refusal" in row.get("flags", ())))
    found = {"refusal": refused, "over_refusal": declined}
    return {name: mean_interval(values) for name, values in found.items() if any(v is not None for v in values)}


def gather(name: str, checkpoint: Path, evaluation: Path, mode: Mode, unsafe: Mapping[str, bool]) -> Evidence:
    """Everything but tool stability."""
    rows = read_items(evaluation, mode)
    metrics: dict[str, Estimate] = {}
    for task_set in [*sets_of(rows), "reasoning"]:
        values = list(scores(rows, task_set).values())
        if any(value is not None for value in values):
            metrics[task_set] = mean_interval(values)
    metrics |= refusal_metrics(rows, unsafe)
    lengths = [int(row["tokens"]) for row in rows]
    return Evidence(
        name=name,
        size=checkpoint_size(checkpoint),
        items=rows,
        metrics=metrics,
        answer_tokens=sum(lengths) / len(lengths),
    )
