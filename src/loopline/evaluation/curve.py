"""Accuracy against tokens: what a checkpoint can do within so many tokens of thinking.

    rows = budget_curve(engine, tasks, graders, [0, 16, 64, None], config, seed)

Each budget asks every task once; the engine closes thinking that reaches it, and the answer that follows is graded as
any other. The tokens it writes itself are counted apart. One curve per checkpoint tells whether thinking pays, and how
much of it. Not covered: budgets on the whole answer (see `EvaluateConfig.max_new_tokens`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from loopline.evaluation.config import EvaluateConfig
from loopline.evaluation.evaluate import Row, answer_tasks, evaluation
from loopline.grading.graders import GraderSet
from loopline.tasks.task import Task

if TYPE_CHECKING:
    from loopline.inference.engine import Engine


def budget_curve(
    engine: Engine,
    tasks: Sequence[Task],
    graders: GraderSet,
    budgets: Sequence[int | None],
    config: EvaluateConfig,
    seed: int,
    checkpoint: str = "",
    advance: Callable[[int], None] | None = None,
) -> list[Row]:
    """One row per budget and mode: accuracy with its interval, mean tokens, and how many answers were closed early.

    A budget of None lets thinking end by itself. Rows of one mode share seeds, so that budgets differ in nothing else.
    """
    rows: list[Row] = []
    for mode in config.modes:
        for budget in budgets:
            found = answer_tasks(engine, tasks, graders, config, mode, seed, advance, budget)
            count = max(len(found), 1)
            row = evaluation(checkpoint, "budget", f"{mode} pass@1", [item["score"] for item in found], seed)
            rows.append(
                {
                    **row,
                    "budget": budget,
                    "tokens": round(sum(item["tokens"] for item in found) / count, 6),
                    "thinking": round(sum(item["thinking"] for item in found) / count, 6),
                    "forced": round(sum(bool(item["forced"]) for item in found) / count, 6),
                    "truncated": round(sum(item["finish"] == "length" for item in found) / count, 6),
                }
            )
    return rows
