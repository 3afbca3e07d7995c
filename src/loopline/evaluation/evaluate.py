"""Answers of a checkpoint to tasks, graded: one row per task and mode.

Sampled mode takes one sample per task at the training temperature, each from its own seed, so that a task's sample does
not depend on which other tasks are asked; greedy mode takes the likeliest continuation. Not covered: several samples
per task (see `statistics.pass_at_k`), tools (see the agents room).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from loopline.evaluation.config import EvaluateConfig
from loopline.evaluation.statistics import mean_interval
from loopline.grading.config import REASONING
from loopline.grading.grade import THINK, Sample
from loopline.grading.graders import GraderSet
from loopline.tasks.task import Task

if TYPE_CHECKING:
    from loopline.inference.engine import Engine

Row = dict[str, Any]


def task_seed(task_id: str, seed: int) -> int:
    """Seed of a task's sample: stable across runs, task order and Python versions."""
    digest = hashlib.sha256(f"{task_id}\x1f{seed}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def answer_tasks(
    engine: Engine,
    tasks: Sequence[Task],
    graders: GraderSet,
    config: EvaluateConfig,
    mode: str,
    seed: int,
    advance: Callable[[int], None] | None = None,
    thinking_budget: int | None | Literal["free"] = "free",
) -> list[Row]:
    """Rows of items.jsonl for one mode, in the order of `tasks`.

    With a `thinking_budget` (None is one without end) each row also counts the tokens that the engine `forced`.
    """
    from loopline.inference.engine import Sampling

    temperature = config.temperature if mode == "sampled" else 0.0
    sampling = Sampling(max_new_tokens=config.max_new_tokens, temperature=temperature, seed=seed)
    measured = thinking_budget != "free"
    if isinstance(thinking_budget, int):
        sampling = replace(sampling, thinking_budget=thinking_budget)
    rows: list[Row] = []
    for start in range(0, len(tasks), 512):
        part = tasks[start : start + 512]
        asked = [task.with_facts() for task in part]
        prompts = [engine.tokenizer.render(list(task.messages), add_generation_prompt=True) for task in asked]
        groups = engine.generate(prompts, sampling, [task_seed(task.id, seed) for task in part])
        done = [group[0] for group in groups]
        texts = [
            engine.tokenizer.decode(item.token_ids[:-1] if item.finish == "stop" else item.token_ids) for item in done
        ]
        samples = [Sample(task, text, item.finish) for task, text, item in zip(asked, texts, done, strict=True)]
        for task, sample, item, grade in zip(part, samples, done, graders.grade(samples), strict=True):
            rows.append(
                {
                    "task": task.id,
                    "task_set": task.task_set,
                    "mode": mode,
                    "score": grade.score,
                    "output": sample.text,
                    "tokens": len(item.token_ids),
                    "finish": item.finish,
                    "thinking": THINK in sample.text,
                    "flags": list(grade.flags),
                    **({"unsafe": task.item["unsafe"]} if "unsafe" in task.item else {}),
                    **({"forced": sum(item.forced)} if measured else {}),
                }
            )
        if advance is not None:
            advance(len(part))
    return rows


def summarize(checkpoint: str, rows: Sequence[Row], modes: Sequence[str], seed: int) -> list[Row]:
    """One evaluation per task set and mode, one for all reasoning sets together where all were asked, and `refusal`:
    the requests of the safety set that must be refused, by themselves.

    A task set in which nothing could be graded is reported with n = 0 and no value.
    """
    task_sets = list(dict.fromkeys(row["task_set"] for row in rows))
    groups: Mapping[str, tuple[str, ...]] = {task_set: (task_set,) for task_set in task_sets}
    if all(task_set in task_sets for task_set in REASONING):
        groups = {**groups, "reasoning": REASONING}
    evaluations = []
    for name, members in groups.items():
        for mode in modes:
            scores = [row["score"] for row in rows if row["mode"] == mode and row["task_set"] in members]
            evaluations.append(evaluation(checkpoint, name, f"{mode} pass@1", scores, seed))
    for mode in modes:
        scores = [row["score"] for row in rows if row["mode"] == mode and row.get("unsafe")]
        if scores:
            evaluations.append(evaluation(checkpoint, "refusal", f"{mode} pass@1", scores, seed))
    return evaluations


def evaluation(checkpoint: str, task: str, metric: str, scores: Sequence[float | None], seed: int) -> Row:
    """One row of summary.json."""
    row: Row = {"checkpoint": checkpoint, "task": task, "metric": metric, "seed": seed}
    if all(score is None for score in scores):
        return {**row, "n": 0, "value": None, "low": None, "high": None, "ungradable": len(scores)}
    found = mean_interval(scores, seed)
    return {
        **row,
        "n": found.n,
        "value": round(found.value, 6),
        "low": round(found.low, 6),
        "high": round(found.high, 6),
        "ungradable": found.ungradable,
    }
