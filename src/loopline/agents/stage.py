"""Search the harness program around a fixed policy: the `harness` stage.

Takes `policy` (a checkpoint), `tasks` and `graders`; writes `candidates/`, `frontier.json`, `harness.json` (the
winner), `heldout.jsonl`, `summary.json`, `audit.json` and `rollouts.jsonl`. The environment is audited first and the
stage refuses one that fails. Candidates evaluated before a crash are kept. Not covered: environments beside lookup.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from loopline.agents.config import HarnessSearchConfig
from loopline.agents.evaluation import run_tasks, summarize
from loopline.agents.proposer import Candidate, Proposal, propose, propose_by_command
from loopline.agents.search import compare, frontier, search
from loopline.attempts.config import HarnessConfig
from loopline.attempts.program import Harness
from loopline.base.errors import UserError
from loopline.base.files import read_jsonl, write_json, write_jsonl
from loopline.environments.lookup import LookupEnvironment
from loopline.evaluation.environment_audit import audit_environment, require
from loopline.grading.graders import GraderSet
from loopline.inference.engine import Engine, Sampling, TorchEngine
from loopline.store.artifact import Artifact
from loopline.store.context import Context
from loopline.tasks.task import Task, load_tasks

ENVIRONMENTS = {"lookup": LookupEnvironment}
FIRST, BEST = "harness:first", "harness:best"


def harness(config: HarnessSearchConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """Audit, search, judge the first harness and the winner on held-out tasks, write the winner's rollouts."""
    if config.task_set not in ENVIRONMENTS:
        raise UserError(
            f"There is no environment for the task set {config.task_set!r}",
            f"set task_set to one of {', '.join(ENVIRONMENTS)}",
        )
    torch.set_num_threads(ctx.threads)
    train = load_tasks(inputs["tasks"] / "train.jsonl", [config.task_set])
    heldout = load_tasks(inputs["tasks"] / "heldout.jsonl", [config.task_set])
    order = ctx.rng("search tasks").permutation(len(train)).tolist()
    train = [train[number] for number in order]
    searched, held = train[: config.search_tasks], heldout[: config.heldout_tasks]
    engine = TorchEngine.from_checkpoint(inputs["policy"].path, config.runtime.batch_size)
    limit = engine.model.config.max_position_embeddings - 1
    first = config.first.model_copy(update={"max_context_tokens": min(config.first.max_context_tokens, limit)})
    with GraderSet.from_json(inputs["graders"] / "graders.json") as graders:
        environment = partial(ENVIRONMENTS[config.task_set].from_tasks, inputs["tasks"].path, graders)
        learning, judging = environment("train"), environment("heldout")
        _audit(config, ctx, engine, [(learning, searched), (judging, held)])
        candidates = _search(config, ctx, engine, learning, searched, first)
        _heldout(config, ctx, engine, judging, held, candidates)
        _rollouts(config, ctx, engine, learning, train, candidates)


def _audit(
    config: HarnessSearchConfig,
    ctx: Context,
    engine: Engine,
    parts: Sequence[tuple[LookupEnvironment, list[Task]]],
) -> None:
    """Write audit.json; raise `UserError` when a probe fails."""
    reports = {}
    for name, (environment, tasks) in zip(("train", "heldout"), parts, strict=True):
        reports[name] = audit_environment(environment, tasks[: config.audit_tasks], engine.tokenizer)
    write_json(ctx.out / "audit.json", reports)
    for report in reports.values():
        require(report)


def _search(
    config: HarnessSearchConfig,
    ctx: Context,
    engine: Engine,
    environment: LookupEnvironment,
    tasks: Sequence[Task],
    first: HarnessConfig,
) -> list[Candidate]:
    """The candidates, written to the artifact."""
    workspace = ctx.state / "search"
    workspace.mkdir(parents=True, exist_ok=True)
    sampling = _sampling(config, ctx)
    with ctx.progress("harness search", config.evaluations) as bar:

        def evaluate(candidate: HarnessConfig) -> list[dict[str, Any]]:
            share = 1 / (len(tasks) * candidate.vote)
            rows = run_tasks(candidate, engine, environment, tasks, sampling, lambda ended: bar.advance(ended * share))
            score = summarize(rows)["score"]
            bar.note(f"score {score:.3f}")
            ctx.metrics.log(len(list(workspace.glob("candidates/*/search.json"))), **{"harness/score": score})
            return rows

        def ask(known: Sequence[Candidate]) -> Proposal | None:
            if not config.proposer:
                return propose(known)
            return propose_by_command(config.proposer, workspace, known, config.runtime.proposer_timeout_s)

        candidates = search(workspace, first, evaluate, ask, config.evaluations)
    shutil.copytree(workspace / "candidates", ctx.out / "candidates", dirs_exist_ok=True)
    write_json(ctx.out / "frontier.json", frontier(candidates))
    write_json(ctx.out / "harness.json", _winner(candidates).config.model_dump())
    return candidates


def _heldout(
    config: HarnessSearchConfig,
    ctx: Context,
    engine: Engine,
    environment: LookupEnvironment,
    tasks: Sequence[Task],
    candidates: Sequence[Candidate],
) -> None:
    """heldout.jsonl and summary.json: the first harness against the winner, on tasks the search never saw."""
    winner = _winner(candidates)
    sides = {FIRST: candidates[0], BEST: winner}
    rows: dict[str, list[dict[str, Any]]] = {}
    with ctx.progress("held-out tasks", len(tasks) * len({side.name for side in sides.values()})) as bar:
        for label, side in sides.items():
            kept = ctx.state / "heldout" / f"{side.name}.jsonl"
            if not kept.exists():
                advance = partial(_advance, bar, 1 / side.config.vote)
                write_jsonl(kept, run_tasks(side.config, engine, environment, tasks, _sampling(config, ctx), advance))
            rows[label] = read_jsonl(kept)
    paired = [
        {"task": a["task"], "first": _outcome(a), "best": _outcome(b)}
        for a, b in zip(rows[FIRST], rows[BEST], strict=True)
    ]
    write_jsonl(ctx.out / "heldout.jsonl", paired)
    metric = f"{'greedy' if config.temperature == 0 else 'sampled'} pass@1"
    summaries = {label: summarize(found) for label, found in rows.items()}
    evaluations = [
        {
            "checkpoint": label,
            "harness": sides[label].name,
            "task": f"{config.task_set} (tools)",
            "metric": metric,
            "value": found["score"],
            "seed": ctx.seed,
            **{key: found[key] for key in ("n", "low", "high", "ungradable", "tokens", "turns", "symptoms")},
        }
        for label, found in summaries.items()
    ]
    comparison = {
        "task": f"{config.task_set} (tools)",
        "metric": metric,
        "seed": ctx.seed,
        **compare(rows[BEST], rows[FIRST], (BEST, FIRST), ctx.seed),
    }
    write_json(ctx.out / "summary.json", {"evaluations": evaluations, "comparisons": [comparison]})
    ctx.metrics.summary(
        heldout_first=summaries[FIRST]["score"], heldout_best=summaries[BEST]["score"], evaluated=len(candidates)
    )


def _rollouts(
    config: HarnessSearchConfig,
    ctx: Context,
    engine: Engine,
    environment: LookupEnvironment,
    train: Sequence[Task],
    candidates: Sequence[Candidate],
) -> None:
    """rollouts.jsonl: sampled multi-turn rollouts under the winner, graded by outcome, as exact tokens."""
    # From the far end of the shuffled tasks, which the search has not fitted unless there are few of them.
    tasks = list(train)[-config.rollout_tasks :] if config.rollout_tasks else []
    single = _winner(candidates).config.model_copy(update={"vote": 1})
    sampling = Sampling(
        max_new_tokens=config.max_new_tokens,
        temperature=1.0,
        n=config.rollout_samples,
        seed=ctx.seed_for("rollouts") % 2**31,
    )
    runs = Harness(single).run(engine, environment, tasks, sampling) if tasks else []
    repeated = [task for task in tasks for _ in range(config.rollout_samples)]
    grades = environment.grade(repeated, runs) if runs else []
    write_jsonl(
        ctx.out / "rollouts.jsonl",
        (
            {
                "task": task.id,
                "sample": number % config.rollout_samples,
                "score": grade.score,
                "flags": [*run.flags, *grade.flags],
                "finish": run.finish,
                "messages": [dict(message) for message in run.messages()],
                "trajectory": run.to_json(),
            }
            for number, (task, run, grade) in enumerate(zip(repeated, runs, grades, strict=True))
        ),
    )


def _advance(bar: Any, share: float, ended: int) -> None:
    """Attempts count as shares of their task."""
    bar.advance(ended * share)


def _winner(candidates: Sequence[Candidate]) -> Candidate:
    name = frontier(candidates)["winner"]
    return next(candidate for candidate in candidates if candidate.name == name)


def _sampling(config: HarnessSearchConfig, ctx: Context) -> Sampling:
    return Sampling(
        max_new_tokens=config.max_new_tokens, temperature=config.temperature, seed=ctx.seed_for("harness") % 2**31
    )


def _outcome(row: Mapping[str, Any]) -> dict[str, Any]:
    """What heldout.jsonl keeps of a trace."""
    return {key: row[key] for key in ("score", "answer", "finish", "flags", "turns", "tokens")}
