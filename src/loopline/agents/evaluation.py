"""Run one harness on a set of tasks: scores, costs, and raw traces that a proposer can read.

    rows = run_tasks(harness_config, engine, environment, tasks, sampling)

A row is one attempt with everything said, every call, what went wrong, and whether the needed facts ever reached the
policy: a proposer that sees scores alone finds little (Meta-Harness, arXiv:2603.28052, ablation). Not covered: choosing
what to try next (see `agents.proposer`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from loopline.attempts.config import HarnessConfig
from loopline.attempts.program import Harness, final_answer
from loopline.base.errors import UserError
from loopline.environments.arithmetic import wrong_step
from loopline.environments.environment import Environment
from loopline.evaluation.statistics import mean_interval
from loopline.grading.grade import Grade
from loopline.inference.engine import Engine, Sampling
from loopline.inference.trajectory import Trajectory
from loopline.tasks.task import Task


def run_tasks(
    config: HarnessConfig,
    engine: Engine,
    environment: Environment,
    tasks: Sequence[Task],
    sampling: Sampling,
    progress: Callable[[int], None] | None = None,
) -> list[dict[str, Any]]:
    """One trace per task, in order. Raises `UserError` when not one outcome could be graded."""
    runs = Harness(config).run(engine, environment, tasks, sampling, progress)
    grades = environment.grade(tasks, runs)
    if all(grade.score is None for grade in grades):
        raise UserError(
            f"None of {len(tasks)} outcomes could be graded ({grades[0].evidence})", "fix the grader, then run again"
        )
    return [trace(*entry) for entry in zip(tasks, runs, grades, strict=True)]


def trace(task: Task, run: Trajectory, grade: Grade) -> dict[str, Any]:
    """One attempt as a row."""
    messages = [dict(message) for message in run.messages()]
    return {
        "task": task.id,
        "question": task.prompt,
        "reference": task.answer,
        "answer": final_answer(run.answer),
        "score": grade.score,
        "evidence": grade.evidence,
        "finish": run.finish,
        "flags": [*run.flags, *grade.flags],
        "symptoms": symptoms(task, run, grade),
        "turns": run.turns,
        "tokens": run.tokens,
        "sampled_tokens": run.sampled_tokens,
        "calls": run.calls,
        "messages": messages,
    }


def symptoms(task: Task, run: Trajectory, grade: Grade) -> list[str]:
    """What a reader of the trace would notice, beyond the flags: sorted names, for wrong and right outcomes alike."""
    messages = run.messages()
    found = set(run.flags)
    read = " ".join(str(m["content"]) for m in messages if m["role"] in ("system", "tool"))
    facts = [str(fact) for fact in task.item.get("facts", [])]
    missing = any(fact not in read for fact in facts)
    if missing:
        found.add("fact_missing")
    slip = any(m["role"] == "assistant" and wrong_step(str(m["content"])) is not None for m in messages)
    if slip:
        found.add("wrong_step")
    if grade.score is not None and grade.score < 1:
        found.add("wrong_answer")
        if not missing and not slip and run.finish == "stop":
            found.add("misread")
    return sorted(found)


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Score with its 95% interval, cost per task, and how often each symptom occurs."""
    estimate = mean_interval([row["score"] for row in rows])
    counts = Counter(name for row in rows for name in row["symptoms"])
    return {
        "score": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "n": estimate.n,
        "ungradable": estimate.ungradable,
        "tokens": fmean(row["tokens"] for row in rows),
        "turns": fmean(row["turns"] for row in rows),
        "symptoms": {name: round(count / len(rows), 4) for name, count in sorted(counts.items())},
    }
