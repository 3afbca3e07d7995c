"""The two grading stages: `graders` audits definitions, `evaluate` asks a checkpoint and reports with intervals.

`graders` takes {"tasks"} and writes graders.json and audit.json. `evaluate` takes {"checkpoint", "tasks", "graders"}
and, for bits per byte, "data"; it writes items.jsonl and summary.json, and with `thinking_budgets` curve.json, accuracy
against tokens. Not covered: multi-turn tasks with tools, which
the agents room evaluates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from loopline.base.errors import UserError
from loopline.base.files import write_json, write_text
from loopline.grading.audit import audit, audit_digest, require_passed
from loopline.grading.config import GradersConfig
from loopline.grading.graders import GraderSet
from loopline.tasks.task import load_tasks

if TYPE_CHECKING:
    from loopline.store.artifact import Artifact
    from loopline.store.context import Context


def graders(config: GradersConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """Audit every definition. Raises `UserError` when a required grader fails."""
    tasks = load_tasks(inputs["tasks"] / "train.jsonl", limit=400)
    unknown = sorted(set(config.required) - config.definitions.keys())
    if unknown:
        raise UserError(
            f"`required` names the grader {unknown[0]!r}, which is not defined",
            f"define it, or use {', '.join(sorted(config.definitions))}",
        )
    with (
        GraderSet.from_defs(config.definitions, workers=ctx.threads) as grader_set,
        ctx.progress("auditing graders", len(config.definitions)) as progress,
    ):
        report = audit(grader_set, tasks, ctx.seed, config.audit_tasks)
        progress.advance(len(config.definitions))
    write_text(ctx.out / "log" / "audit.txt", audit_digest(report) + "\n")
    require_passed(report, config.required)
    write_json(ctx.out / "graders.json", config.definitions)
    write_json(ctx.out / "audit.json", report)
    ctx.metrics.summary(graders=len(report), passed=sum(entry["passed"] for entry in report.values()))
