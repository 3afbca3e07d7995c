"""Answers to tasks, graded: one row per attempt, and what they add up to, with intervals.

    groups = answer_tasks(engine, tasks, graders, config, "sampled", seed)
    rows = item_rows(groups, "sampled")
    summarize("sft", rows, ("sampled",), seed)

Sampled mode takes `config.samples` attempts at the training temperature, greedy mode the likeliest continuation. A
task's attempts depend on its name and the seed, not on which others are asked. Not covered: tools (see `agents`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

from loopline.attempts.ask import ask
from loopline.attempts.attempt import Attempt
from loopline.evaluation.config import EvaluateConfig, Mode
from loopline.evaluation.statistics import mean_interval, pass_at_k, pass_hat_k
from loopline.grading.graders import GraderSet
from loopline.inference.engine import Engine, Sampling
from loopline.tasks.sets import TAG
from loopline.tasks.task import Task

Row = dict[str, Any]
CHUNK_ATTEMPTS = 512
"""Attempts between two saves."""
SHOWN = 3
"""Results in a headline."""


def answer_tasks(
    engine: Engine,
    tasks: Sequence[Task],
    graders: GraderSet,
    config: EvaluateConfig,
    mode: Mode,
    seed: int,
    progress: Callable[[int], None] | None = None,
    thinking_budget: int | None = None,
    state: Path | None = None,
) -> list[list[Attempt]]:
    """Graded attempts at every task in one mode, in the order of `tasks`; `state` keeps what is done."""
    sampled = mode == "sampled"
    sampling = Sampling(
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature if sampled else 0.0,
        n=config.samples if sampled else 1,
        thinking_budget=thinking_budget,
    )
    return ask(
        engine,
        [task.with_facts() for task in tasks],
        sampling,
        graders=graders,
        seed=seed,
        thinking=config.thinking,
        state=state,
        chunk=max(1, CHUNK_ATTEMPTS // sampling.n),
        progress=progress,
    )


def item_rows(groups: Sequence[Sequence[Attempt]], mode: Mode) -> list[Row]:
    """Rows of items.jsonl. Items that may depend on each other share the `cluster` that their task names."""
    return [
        {
            **attempt.to_row(),
            "mode": mode,
            "part": attempt.task.part,
            **({"cluster": attempt.task.item["cluster"]} if "cluster" in attempt.task.item else {}),
        }
        for group in groups
        for attempt in group
    ]


def summarize(checkpoint: str, rows: Sequence[Row], modes: Sequence[Mode], seed: int) -> list[Row]:
    """One evaluation per part, task set or tag (as `tag:<tag>`), mode and metric.

    Where nothing could be graded, n is 0 and there is no value. Attempts at one task are no independent observations:
    intervals are over tasks, or over the clusters of tasks.
    """
    names = [*dict.fromkeys(row["task_set"] for row in rows)]
    names += [f"{TAG}{tag}" for tag in dict.fromkeys(tag for row in rows for tag in row["tags"])]
    evaluations = []
    for part in dict.fromkeys(row["part"] for row in rows):
        for name in names:
            members = [row for row in rows if row["part"] == part and _belongs(row, name)]
            for mode in modes:
                found = [row for row in members if row["mode"] == mode]
                if found:
                    place = {"checkpoint": checkpoint, "task": name, "part": part, "seed": seed}
                    evaluations += [{**place, **numbers} for numbers in _metrics(found, mode, seed)]
    return evaluations


def _belongs(row: Row, name: str) -> bool:
    return name.removeprefix(TAG) in row["tags"] if name.startswith(TAG) else row["task_set"] == name


def _metrics(rows: Sequence[Row], mode: Mode, seed: int) -> list[Row]:
    """Mean score, and with several samples of a task pass@k and pass^k for k = 1, 2, 4, ... and all of them."""
    by_task: dict[str, list[Row]] = {}
    for row in rows:
        by_task.setdefault(row["task"], []).append(row)
    clusters = [row.get("cluster", row["task"]) for row in rows]
    found = [interval(f"{mode} pass@1", [row["score"] for row in rows], seed, clusters)]
    found[0]["n"] = sum(any(row["score"] is not None for row in group) for group in by_task.values())
    most = max(map(len, by_task.values()))
    for k in sorted({2**power for power in range(1, most.bit_length()) if 2**power < most} | {most} - {1}):
        for name, rate in (("pass@", pass_at_k), ("pass^", pass_hat_k)):
            rates: list[float | None] = []
            for group in by_task.values():
                graded = [row["score"] for row in group if row["score"] is not None]
                right = sum(score >= 1 for score in graded)
                rates.append(rate(len(graded), right, k) if len(graded) >= k else None)
            members = [group[0].get("cluster", task) for task, group in by_task.items()]
            found.append(interval(f"{mode} {name}{k}", rates, seed, members))
    return found


def interval(metric: str, scores: Sequence[float | None], seed: int, clusters: Sequence[Hashable] | None = None) -> Row:
    """Mean of `scores` with its 95% interval, as in a row of summary.json."""
    if all(score is None for score in scores):
        return {"metric": metric, "n": 0, "value": None, "low": None, "high": None, "ungradable": len(scores)}
    found = mean_interval(scores, seed, clusters)
    numbers = {name: round(getattr(found, name), 6) for name in ("value", "low", "high")}
    return {"metric": metric, "n": found.n, **numbers, "ungradable": found.ungradable}


def headline(evaluations: Sequence[Row]) -> str:
    """The main results in a few words: of the held-out part if it was asked, of tags if there are any."""
    known = [row for row in evaluations if row["value"] is not None]
    scores = [row for row in known if row["metric"].endswith("pass@1")]
    if not scores:
        return ", ".join(f"{row['task']} {row['value']:.3f} bits per byte" for row in known[:SHOWN])
    last = [row for row in scores if row["part"] == "heldout"] or scores
    chosen = [row for row in last if row["metric"] == last[0]["metric"]]
    chosen = [row for row in chosen if row["task"].startswith(TAG)] or chosen
    text = ", ".join(
        f"{row['task'].removeprefix(TAG)} {row['value']:.1%} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
        for row in chosen[:SHOWN]
    )
    return text if last[0]["part"] == "heldout" else f"development {text}"


def mean(values: Sequence[float]) -> float:
    """Their mean, rounded as in artifacts; 0 of none."""
    return round(math.fsum(values) / max(len(values), 1), 6)
