"""Search the harness program around a fixed policy: the `harness` stage.

Takes `policy` (a checkpoint), `tasks` and `graders`; writes `candidates/`, `frontier.json`, `harness.json` (the winner
and its environment), `heldout.jsonl`, `summary.json`, `audit.json` and `rollouts.jsonl`. The environment is audited
first and the stage refuses one that fails. The search chooses on development tasks; held-out tasks are seen once, by
the first harness and the winner, whose difference is the gain. Beside it is the oracle: what the recorded solutions
score under the same limits. Candidates evaluated before a crash are kept. Not covered: training the policy (see
`posttrain`).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from loopline.agents.ceiling import oracle_score, require_ceiling
from loopline.agents.config import HarnessSearchConfig
from loopline.agents.evaluation import run_tasks, summarize
from loopline.agents.proposer import Candidate, Proposal, propose, propose_by_command
from loopline.agents.search import compare, frontier, search
from loopline.attempts.config import HarnessConfig, write_harness
from loopline.attempts.program import Harness
from loopline.base.files import read_jsonl, write_json, write_jsonl
from loopline.environments.environment import Environment
from loopline.environments.registry import load_environment
from loopline.evaluation.environment_audit import audit_environment, require
from loopline.grading.graders import GraderSet
from loopline.inference.engine import Engine, Sampling, TorchEngine
from loopline.store.artifact import Artifact
from loopline.store.context import Context
from loopline.store.progress import Progress
from loopline.tasks.task import Task, load_chosen

FIRST, BEST = "harness:first", "harness:best"
SHOWN = ("low", "high", "n", "ungradable", "tokens", "turns", "symptoms")
World = tuple[Environment, list[Task]]


def harness(config: HarnessSearchConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """Audit, search, judge the first harness and the winner on held-out tasks, write the winner's rollouts."""
    torch.set_num_threads(ctx.threads)
    tasks = inputs["tasks"].path
    rows = {part: load_chosen(tasks / f"{part}.jsonl", config.tasks) for part in ("train", "dev", "heldout")}
    for part in ("train", "dev"):
        order = ctx.rng(f"{part} tasks").permutation(len(rows[part])).tolist()
        rows[part] = [rows[part][number] for number in order]
    chosen = {"train": rows["train"], "dev": rows["dev"][: config.search_tasks]}
    chosen["heldout"] = rows["heldout"][: config.heldout_tasks]
    engine = TorchEngine.from_checkpoint(inputs["policy"].path, config.runtime.batch_size)
    first = config.first.within(engine.model.config.max_position_embeddings, config.max_new_tokens)
    with GraderSet.from_json(inputs["graders"] / "graders.json") as graders:
        worlds = {
            part: (load_environment(config.environment, tasks, graders, part), some) for part, some in chosen.items()
        }
        ceilings = _audit(config, ctx, engine, worlds, first)
        candidates = _search(config, ctx, engine, *worlds["dev"], first)
        write_harness(ctx.out / "harness.json", _winner(candidates).config, config.environment)
        _heldout(config, ctx, engine, *worlds["heldout"], candidates, ceilings)
        _rollouts(config, ctx, engine, *worlds["train"], candidates)


def _audit(
    config: HarnessSearchConfig, ctx: Context, engine: Engine, worlds: Mapping[str, World], first: HarnessConfig
) -> dict[str, float | None]:
    """Write audit.json and return the oracle's score per part; raise `UserError` for a probe or a ceiling that
    fails."""
    if config.oracle == "none":
        write_json(ctx.out / "audit.json", {})
        return dict.fromkeys(worlds)
    reports = {}
    for part, (environment, tasks) in worlds.items():
        reports[part] = audit_environment(environment, tasks[: config.audit_tasks], engine.tokenizer)
    write_json(ctx.out / "audit.json", reports)
    for report in reports.values():
        require(report)
    ceilings: dict[str, float | None] = {}
    for part in ("dev", "heldout"):
        environment, tasks = worlds[part]
        ceilings[part] = oracle_score(environment, tasks, engine.tokenizer, first, _sampling(config, ctx))
        if config.oracle == "required":
            require_ceiling(ceilings[part], part, first, config.max_new_tokens)
    return ceilings


def _search(
    config: HarnessSearchConfig,
    ctx: Context,
    engine: Engine,
    environment: Environment,
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
    return candidates


def _heldout(
    config: HarnessSearchConfig,
    ctx: Context,
    engine: Engine,
    environment: Environment,
    tasks: Sequence[Task],
    candidates: Sequence[Candidate],
    ceilings: Mapping[str, float | None],
) -> None:
    """heldout.jsonl and summary.json: the first harness against the winner, on tasks the search never saw."""
    sides = {FIRST: candidates[0], BEST: _winner(candidates)}
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
    named = {"task": "+".join(sorted({task.task_set for task in tasks})), "metric": metric, "seed": ctx.seed}
    summaries = {label: summarize(found) for label, found in rows.items()}
    evaluations = []
    for label, found in summaries.items():
        limits = sides[label].config
        ceiling = ceilings["heldout"]
        if ceiling is not None and limits.limits() != candidates[0].config.limits():
            ceiling = oracle_score(environment, tasks, engine.tokenizer, limits, _sampling(config, ctx))
        row = {"checkpoint": label, "harness": sides[label].name, "value": found["score"], "oracle": ceiling}
        evaluations.append({**named, **row, **{key: found[key] for key in SHOWN}})
    comparison = {**named, **compare(rows[BEST], rows[FIRST], (BEST, FIRST), ctx.seed)}
    control = {"name": FIRST, "score": summaries[FIRST]["score"], "oracle": ceilings["heldout"]}
    write_json(
        ctx.out / "summary.json",
        {
            "evaluations": evaluations,
            "comparisons": [comparison],
            "oracle": ceilings["heldout"],
            "oracle_dev": ceilings["dev"],
            "control": control,
        },
    )
    reached = "none" if ceilings["heldout"] is None else f"{ceilings['heldout']:.1%}"
    first, best = (summaries[label]["score"] for label in (FIRST, BEST))
    ctx.metrics.summary(
        headline=f"{best:.1%} held out; first harness {first:.1%}, oracle {reached}",
        heldout_first=first,
        heldout_best=best,
        oracle=ceilings["heldout"],
        evaluated=len(candidates),
        control=FIRST,
    )


def _rollouts(
    config: HarnessSearchConfig,
    ctx: Context,
    engine: Engine,
    environment: Environment,
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


def _advance(bar: Progress, share: float, ended: int) -> None:
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
