"""The evaluation stage: ask a checkpoint, or an endpoint, and report with intervals.

Takes {"checkpoint", "tasks", "graders"} and, for bits per byte, "data"; writes items.jsonl and summary.json, with
`thinking_budgets` curve.json (accuracy against tokens), and with bits per byte bpb.jsonl. Not covered: multi-turn tasks
with tools.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from loopline.base.errors import UserError
from loopline.base.files import write_json, write_jsonl
from loopline.evaluation.bits import corpus_bits, text_bits
from loopline.evaluation.config import EndpointConfig, EvaluateConfig, Part
from loopline.evaluation.curve import budget_curve
from loopline.evaluation.evaluate import Row, answer_tasks, headline, item_rows, summarize
from loopline.grading.graders import GraderSet
from loopline.inference.engine import Engine, TorchEngine
from loopline.inference.openai_engine import OpenAIEngine
from loopline.store.artifact import Artifact
from loopline.store.context import Context
from loopline.tasks.sets import read_sets, select_sets
from loopline.tasks.task import Task, load_tasks
from loopline.training.shards import ShardSet


def evaluate(config: EvaluateConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """Ask every task of the chosen parts in every mode, and score held-out text.

    Raises `UserError` when a chosen task set has no tasks in these parts, a task names a grader that is not defined, or
    there is nothing to evaluate.
    """
    tasks = chosen_tasks(inputs["tasks"].path, config.tasks, config.parts, config.n, config.n_by_set)
    name, engine = _engine(config.endpoint, inputs, ctx)
    state = ctx.state / "answers"
    rows: list[Row] = []
    timings = {}
    with (
        GraderSet.from_json(inputs["graders"] / "graders.json", workers=ctx.threads) as graders,
        ctx.progress(f"evaluating {name}", len(tasks) * len(config.modes)) as bar,
    ):
        for mode in config.modes:
            started = time.monotonic()
            groups = answer_tasks(engine, tasks, graders, config, mode, ctx.seed, bar.advance, state=state)
            seconds, found = time.monotonic() - started, item_rows(groups, mode)
            tokens = sum(row["tokens"] or 0 for row in found)
            timings[mode] = {
                "seconds": seconds,
                "tasks": len(tasks),
                "tokens": tokens,
                "tokens_per_second": tokens / seconds,
            }
            rows += found
        if config.thinking_budgets:
            asked = _curve_tasks(config, inputs["tasks"].path, tasks)
            budgets = [*sorted(set(config.thinking_budgets)), None]
            curve = budget_curve(engine, asked, graders, budgets, config, ctx.seed, name, state=state)
            write_json(ctx.out / "curve.json", {"curve": curve})
    evaluations = summarize(name, rows, config.modes, ctx.seed)
    bits, windows, notes = _bits(config, engine, inputs, name, ctx)
    if windows:
        write_jsonl(ctx.out / "bpb.jsonl", windows)
    write_jsonl(ctx.out / "items.jsonl", rows)
    write_json(ctx.out / "summary.json", {"evaluations": [*evaluations, *bits], "notes": notes})
    write_json(ctx.out / "log" / "latency.json", timings)
    known = [row for row in evaluations if row["value"] is not None]
    ctx.metrics.summary(
        **{f"{row['part']} {row['task']} {row['metric']}": row["value"] for row in known},
        **{f"{row['task']} {row['metric']}": row["value"] for row in bits},
        ungradable=sum(row["score"] is None for row in rows),
        headline=headline([*evaluations, *bits]),
    )


def chosen_tasks(
    tasks: Path, choice: Sequence[str], parts: Sequence[Part], n: int | None, n_by_set: Mapping[str, int] | None = None
) -> list[Task]:
    """Tasks of the chosen sets, part after part; at most `n` of each set and part, or what `n_by_set` says.

    Raises `UserError` for a set that has no tasks in any of `parts`.
    """
    sets = read_sets(tasks / "sets.json")
    names = list(select_sets(choice, sets))
    for name in names:
        if not any(sets[name]["counts"].get(part) for part in parts):
            raise UserError(
                f"The task set {name!r} has no {' or '.join(parts)} tasks",
                "give it a part of its own (a share, or a file), or leave it out of the `tasks` of this stage",
            )
    found: list[Task] = []
    for part in parts:
        here = [name for name in names if sets[name]["counts"].get(part)]
        found += load_tasks(tasks / f"{part}.jsonl", here, limit=n, limit_by_set=n_by_set) if here else []
    return found


def _engine(endpoint: EndpointConfig | None, inputs: Mapping[str, Artifact], ctx: Context) -> tuple[str, Engine]:
    """What is evaluated and its name. Raises `UserError` when there is nothing."""
    if endpoint is None:
        if "checkpoint" not in inputs:
            raise UserError(
                "There is nothing to evaluate", "give a checkpoint, or an `endpoint` with its url and model"
            )
        checkpoint = inputs["checkpoint"]
        return checkpoint.stage, TorchEngine.from_checkpoint(checkpoint.path, device=ctx.device)
    key = None
    if endpoint.key_env is not None:
        key = os.environ.get(endpoint.key_env)
        if not key:
            raise UserError(
                f"endpoint.key_env names {endpoint.key_env}, which is not set", f"export {endpoint.key_env}=..."
            )
    engine = OpenAIEngine(
        endpoint.url,
        endpoint.model,
        api_key=key,
        mode="chat",
        concurrency=endpoint.concurrency,
        ask_logprobs=False,
    )
    return endpoint.model, engine


def _curve_tasks(config: EvaluateConfig, tasks: Path, asked: Sequence[Task]) -> list[Task]:
    """Tasks of the curve: a setting is chosen by it, so of the development part where that is evaluated."""
    names = select_sets(config.curve_tasks, tasks / "sets.json")
    members = [task for task in asked if task.task_set in names]
    return [task for task in members if task.part == "dev"] or members


def _bits(
    config: EvaluateConfig, engine: Engine, inputs: Mapping[str, Artifact], name: str, ctx: Context
) -> tuple[list[Row], list[Row], list[str]]:
    """Evaluations of held-out text, the windows they are made of, and what was left out."""
    rows: list[Row] = []
    windows: list[Row] = []
    notes: list[str] = []
    if not isinstance(engine, TorchEngine):
        return rows, windows, notes
    if "data" in inputs and config.heldout_documents:
        own, theirs = inputs["checkpoint"] / "tokenizer.json", inputs["data"] / "tokenizer" / "tokenizer.json"
        if theirs.exists() and own.read_bytes() != theirs.read_bytes():
            notes.append("no bits per byte on the corpus, which is cut into tokens of another tokenizer")
        else:
            shards = ShardSet(inputs["data"].path)
            rows, windows = corpus_bits(engine.model, shards, config.heldout_documents, name, ctx.seed)
    if "text" in inputs:
        row, found = text_bits(engine.model, engine.tokenizer, inputs["text"].path, name, ctx.seed)
        rows, windows = [*rows, row], [*windows, *found]
    return rows, windows, notes
