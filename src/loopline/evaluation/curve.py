"""Accuracy against tokens: what a checkpoint can do within so many tokens of thinking.

    rows = budget_curve(engine, tasks, graders, [0, 16, 64, None], config, seed)

Each budget asks every task; the engine closes thinking that reaches it, and the answer that follows is graded as any
other. The tokens it writes itself are counted apart. One curve per checkpoint tells whether thinking helps, and how
much of it. Not covered: budgets on the whole answer (see `EvaluateConfig.max_new_tokens`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from loopline.evaluation.config import EvaluateConfig
from loopline.evaluation.evaluate import Row, answer_tasks, interval, mean
from loopline.grading.grade import THINK
from loopline.grading.graders import GraderSet
from loopline.inference.engine import Engine
from loopline.tasks.task import Task


def budget_curve(
    engine: Engine,
    tasks: Sequence[Task],
    graders: GraderSet,
    budgets: Sequence[int | None],
    config: EvaluateConfig,
    seed: int,
    checkpoint: str = "",
    progress: Callable[[int], None] | None = None,
    state: Path | None = None,
) -> list[Row]:
    """One row per mode and budget: accuracy with its interval, mean tokens, and how many answers were closed early.

    A budget of None lets thinking end by itself. Rows of one mode share seeds, so that budgets differ in nothing else.
    """
    rows: list[Row] = []
    for mode in config.modes:
        for budget in budgets:
            groups = answer_tasks(engine, tasks, graders, config, mode, seed, progress, budget, state)
            found = [attempt for group in groups for attempt in group]
            scores, names = [attempt.score for attempt in found], [attempt.task.id for attempt in found]
            rows.append(
                {
                    "checkpoint": checkpoint,
                    "task": "budget",
                    "seed": seed,
                    **interval(f"{mode} pass@1", scores, seed, names),
                    "budget": budget,
                    "tokens": mean([len(attempt.completion.token_ids) for attempt in found]),
                    "thinking": mean([THINK in attempt.text for attempt in found]),
                    "forced": mean([any(attempt.completion.forced) for attempt in found]),
                    "truncated": mean([attempt.completion.finish == "length" for attempt in found]),
                }
            )
    return rows
