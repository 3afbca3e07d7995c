"""The evaluation stage: ask a checkpoint and report with intervals.

Takes {"checkpoint", "tasks", "graders"} and, for bits per byte, "data"; writes items.jsonl and summary.json, and with
`thinking_budgets` curve.json, accuracy against tokens. Not covered: multi-turn tasks with tools.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from loopline.base.files import write_json, write_jsonl
from loopline.evaluation.config import EvaluateConfig
from loopline.evaluation.curve import budget_curve
from loopline.evaluation.evaluate import Row, answer_tasks, summarize
from loopline.grading.graders import GraderSet
from loopline.tasks.task import load_tasks

if TYPE_CHECKING:
    from loopline.model.language_model import LanguageModel
    from loopline.store.artifact import Artifact
    from loopline.store.context import Context


def evaluate(config: EvaluateConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """Ask the checkpoint every held-out task in every mode, and score held-out text.

    Raises `UserError` when a task set has no held-out tasks or a task names a grader that is not defined.
    """
    from loopline.inference.engine import TorchEngine

    checkpoint = inputs["checkpoint"]
    tasks = load_tasks(
        inputs["tasks"] / "heldout.jsonl", config.task_sets, limit=config.n, limit_by_set=config.n_by_set
    )
    engine = TorchEngine.from_checkpoint(checkpoint.path, device=ctx.device)
    rows: list[Row] = []
    timings = {}
    with (
        GraderSet.from_json(inputs["graders"] / "graders.json", workers=ctx.threads) as grader_set,
        ctx.progress(f"evaluating {checkpoint.stage}", len(tasks) * len(config.modes)) as progress,
    ):
        for mode in config.modes:
            started = time.monotonic()
            found = answer_tasks(engine, tasks, grader_set, config, mode, ctx.seed, progress.advance)
            seconds, tokens = time.monotonic() - started, sum(row["tokens"] for row in found)
            timings[mode] = {
                "seconds": seconds,
                "tasks": len(found),
                "tokens": tokens,
                "tokens_per_second": tokens / seconds,
            }
            rows += found
        if config.thinking_budgets:
            asked = [task for task in tasks if task.task_set in config.curve_sets]
            budgets = [*sorted(set(config.thinking_budgets)), None]
            curve = budget_curve(engine, asked, grader_set, budgets, config, ctx.seed, checkpoint.stage)
            write_json(ctx.out / "curve.json", {"curve": curve})
    evaluations = summarize(checkpoint.stage, rows, config.modes, ctx.seed)
    if "data" in inputs and config.heldout_documents:
        bits, scored = bits_rows(engine.model, inputs["data"], checkpoint.stage, config, ctx)
        evaluations += bits
        write_jsonl(ctx.out / "bpb.jsonl", scored)
    write_jsonl(ctx.out / "items.jsonl", rows)
    write_json(ctx.out / "summary.json", {"evaluations": evaluations})
    write_json(ctx.out / "log" / "latency.json", timings)
    ctx.metrics.summary(
        **{f"{row['task']} {row['metric']}": row["value"] for row in evaluations if row["value"] is not None},
        ungradable=sum(row["score"] is None for row in rows),
    )


def bits_rows(
    model: LanguageModel, data: Artifact, checkpoint: str, config: EvaluateConfig, ctx: Context
) -> tuple[list[Row], list[Row]]:
    """One bits_per_byte evaluation per source that has held-out text, and the windows they are made of."""
    from loopline.evaluation.bits import bits_per_byte, window_nats, window_rows
    from loopline.training.shards import ShardSet

    shards = ShardSet(data.path)
    length = min(256, model.config.max_position_embeddings)
    rows: list[Row] = []
    scored: list[Row] = []
    with ctx.progress("bits per byte", len(shards.sources)) as progress:
        for source in shards.sources:
            windows = shards.heldout_windows(source, length, config.heldout_documents)
            if len(windows):
                nats, counts = window_nats(model, windows)
                size = shards.heldout_bytes_per_token(source)
                found = bits_per_byte(nats, counts, size, ctx.seed)
                scored += window_rows(source, nats, counts, size)
                rows.append(
                    {
                        "checkpoint": checkpoint,
                        "task": source,
                        "metric": "bits_per_byte",
                        "n": found.n,
                        "value": round(found.value, 6),
                        "low": round(found.low, 6),
                        "high": round(found.high, 6),
                        "seed": ctx.seed,
                        "ungradable": 0,
                    }
                )
            progress.advance()
    return rows, scored
