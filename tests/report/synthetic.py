"""A whole line whose stages write small files of known content, run by the real line into a real store.

run_line(synthetic_recipe(), run_dir)
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from loopline.base.files import write_json, write_jsonl, write_text
from loopline.evaluation.evaluate import summarize
from loopline.pipeline import run_line
from loopline.recipe import Recipe, find_recipe, load_recipe
from loopline.store.artifact import Artifact
from loopline.store.context import Context

HOSTILE = (
    '<script>alert(1)</script><img src="https://evil.example/x.png" onerror="alert(2)"> \'"&\n</code></td>'
    "\x1b[31m\u202e<a href='http://evil.example'>x</a>{{ 7 * 7 }}"
)
"""What a model may answer to take over the page that shows it."""
FAMILIES = ("arithmetic", "word_problem", "ordering", "code", "format", "safety", "lookup")
SOURCES = ("python/code", "synthetic/arithmetic")
TASKS = 24
RATES = {"pretrain": 0.05, "sft": 0.3, "grpo": 0.75, "student_plain": 0.25, "student": 0.5}
"""Share of tasks each checkpoint solves; others solve 0.7."""
STEPS = 12


def synthetic_recipe(functions: Mapping[str, str] | None = None, seed: int = 3) -> Recipe:
    """The smoke recipe, every node written by this module, or by what `functions` names instead."""
    own = functions or {}
    recipe = load_recipe(find_recipe("smoke"), ["name=demo"], seed)
    nodes = [
        replace(node, kind=replace(node.kind, function=own.get(node.name, "tests.report.synthetic:write")))
        for node in recipe.nodes
    ]
    return replace(recipe, nodes=tuple(nodes))


def make_run(run_dir: Path, until: str | None = None) -> Path:
    """Run the synthetic line."""
    run_line(synthetic_recipe(), run_dir, until)
    return run_dir


def items(checkpoint: str, mode: str) -> list[dict[str, Any]]:
    """Graded answers; a checkpoint with a higher rate solves every task that one with a lower rate solves."""
    rows = []
    for task_set in FAMILIES:
        for number in range(TASKS):
            draw = random.Random(f"{task_set}/{number}/{mode}").random()
            score: float | None = float(draw < RATES.get(checkpoint, 0.7))
            if task_set == "code" and number == 0:
                score = None
            rows.append(
                {
                    "task": f"{task_set}-{number:03d}",
                    "task_set": task_set,
                    "part": "heldout",
                    "tags": ["reasoning"] if task_set in FAMILIES[:3] else [],
                    "mode": mode,
                    "score": score,
                    "output": HOSTILE if number % 3 == 0 else str(number),
                    "tokens": 5,
                    "finish": "length" if number % 3 == 0 else "stop",
                    "thinking": False,
                    "flags": ["grader_failed"] if score is None else [],
                }
            )
    return rows


def write(config: Any, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """The stage function of every synthetic node."""
    del config
    writer = WRITERS.get(ctx.stage)
    if ctx.stage.startswith("evaluate_"):
        evaluation(ctx.out, inputs["checkpoint"].stage)
        ctx.metrics.summary(tasks=TASKS)
    elif writer is not None:
        writer(ctx)
    else:
        checkpoint(ctx)


def fail(config: Any, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """A stage that logs a few steps and stops."""
    log_steps(ctx, 4)
    raise RuntimeError("out of luck")


def die(config: Any, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """A stage whose process is killed half-way through writing a line."""
    log_steps(ctx, 4)
    with ctx.metrics.path.open("a") as file:
        file.write('{"loss": 1.')
    os.kill(os.getpid(), signal.SIGKILL)


def log_steps(ctx: Context, steps: int = STEPS) -> None:
    rl = ("entropy", "reward", "rollout/solved_share", "rollout/failed_share", "rollout/length")
    for step in range(steps):
        extra = dict.fromkeys(rl, step / STEPS) if ctx.stage == "grpo" else {}
        ctx.metrics.log(step, loss=5.0 - step / 4 if step != 3 else float("nan"), **extra)


def checkpoint(ctx: Context) -> None:
    log_steps(ctx)
    write_text(ctx.out / "model.safetensors", f"{ctx.stage} weights")
    if ctx.stage == "grpo":
        write_jsonl(ctx.out / "rollouts.jsonl", rollouts())
    if ctx.stage == "reject":
        write_json(ctx.out / "accepted.json", {"kept": 5, "rejected": {"wrong": 7}, "source": "rollouts.jsonl"})


def rollouts() -> list[dict[str, Any]]:
    def output(score: float | None, text: str) -> dict[str, Any]:
        common = {"flags": [], "finish": "stop", "tokens": 4}
        return {"text": text, "score": score, "reward": score, **common}

    rows = []
    for step in range(STEPS):
        for task_set in FAMILIES[:2]:
            for number, scores in enumerate(([0.0, 0.0], [0.0, 1.0, None])):
                rows.append(
                    {
                        "step": step,
                        "task": f"{task_set}-{step}-{number}",
                        "task_set": task_set,
                        "prompt": f"What is {step}? {HOSTILE}",
                        "outputs": [output(score, f"{score} {HOSTILE}") for score in scores],
                    }
                )
    return rows


def evaluation(out: Path, name: str) -> None:
    rows = [row for mode in ("sampled", "greedy") for row in items(name, mode)]
    bits = [
        {"checkpoint": name, "task": source, "metric": "bits_per_byte", "n": 40, "value": 2.5, "low": 2.4, "high": 2.6}
        | {"seed": 1, "ungradable": 0}
        for source in SOURCES
    ]
    write_jsonl(out / "items.jsonl", rows)
    write_json(out / "summary.json", {"evaluations": [*summarize(name, rows, ("sampled", "greedy"), 1), *bits]})


def raw(ctx: Context) -> None:
    write_json(ctx.out / "sources.json", {source: {"documents": 10, "bytes": 12345} for source in SOURCES})


def tasks(ctx: Context) -> None:
    rows = [
        {
            "id": f"{task_set}-{number:03d}",
            "task_set": task_set,
            "messages": [{"role": "user", "content": f"{task_set} {number}: {HOSTILE}"}],
            "answer": str(number),
        }
        for task_set in FAMILIES
        for number in range(TASKS)
    ]
    write_jsonl(ctx.out / "heldout.jsonl", rows)


def funnel() -> list[dict[str, Any]]:
    common = {"documents_in": 10, "bytes_in": 1000}
    sample = {"id": "python/code:a.py", "reason": "min words", "excerpt": HOSTILE}
    return [
        {"step": "normalize", "documents_out": 10, "bytes_out": 1000, "reasons": {}, "samples": [], **common},
        {"step": "quality", "documents_out": 8, "bytes_out": 900, "reasons": {"min words": 2}, "samples": [sample]}
        | common,
    ]


def data(ctx: Context) -> None:
    write_json(ctx.out / "funnel.json", funnel())
    entry = {"weight": 0.5, "train_tokens": 1000, "heldout_tokens": 100, "licences": [HOSTILE]}
    write_json(ctx.out / "manifest.json", {"vocab_size": 512, "sources": dict.fromkeys(SOURCES, entry)})


def graders(ctx: Context) -> None:
    probe = {"probe": "reference", "n": 4, "mean": 1.0, "max": 1.0, "pays": True}
    spam = {"probe": "answer_spam", "n": 4, "mean": 1.0, "max": 1.0, "pays": True, "ungradable": 1}
    audit = {
        "final_answer": {"passed": True, "probes": [probe, {**spam, "mean": 0.0, "max": 0.0, "pays": False}]},
        "naive_contains": {"passed": False, "probes": [probe, spam]},
    }
    write_json(ctx.out / "audit.json", audit)


def plan(ctx: Context) -> None:
    shape = {"num_hidden_layers": 4, "hidden_size": 64}
    value = {"model": shape, "student": shape, "parameters": 262_976, "tokens": 400_000, "steps": STEPS}
    value |= {"batch_tokens": 4096, "sequence_length": 256, "learning_rate": 0.003, "flops": 6e11}
    write_json(ctx.out / "plan.json", {**value, "budget": {"flops": 7e11}})


def harness(ctx: Context) -> None:
    trace = {"question": HOSTILE, "reference": "4", "answer": HOSTILE, "flags": [], "symptoms": ["misread"]}
    trace |= {"turns": 2, "tokens": 40, "calls": [], "messages": [{"role": "user", "content": HOSTILE}]}
    rows = [{"task": f"lookup-{number}", "score": float(number % 2), **trace} for number in range(4)]
    for number, name in enumerate(("00-first", "01-search")):
        folder = ctx.out / "candidates" / name
        row = {"name": name, "parent": "00-first" if number else None, "mechanism": "search", "score": number / 2}
        row |= {"hypothesis": HOSTILE, "low": 0.0, "high": 0.6, "n": 4, "ungradable": 0, "tokens": 50.0 - number}
        row |= {"turns": 2.0, "symptoms": {"misread": 0.5}}
        if number:
            row["against_parent"] = {"a": name, "b": "00-first", "n": 4, "difference": 0.5, "low": 0.1, "high": 0.9}
            row["against_parent"] |= {"p": 0.5, "better": None}
        write_json(folder / "search.json", row)
        write_jsonl(folder / "traces.jsonl", rows)
    points = [{"name": "00-first", "score": 0.0, "tokens": 50.0}, {"name": "01-search", "score": 0.5, "tokens": 49.0}]
    front = {"first": "00-first", "winner": "01-search", "frontier": ["01-search"], "points": points}
    write_json(ctx.out / "frontier.json", front)
    write_json(ctx.out / "harness.json", {"search_tool": True})
    audit = {"environment": "lookup", "passed": True, "probes": [{"probe": "reset", "n": 4, "failures": 0}]}
    write_json(ctx.out / "audit.json", {"heldout": audit})
    row = {"task": "lookup (tools)", "metric": "greedy pass@1", "seed": 5}
    evaluations = [
        {**row, "checkpoint": name, "n": 40, "value": value, "low": value - 0.1, "high": value + 0.1, "tokens": 40.0}
        | {"ungradable": 0, "symptoms": {}, "turns": 2.0}
        for name, value in (("harness:first", 0.2), ("harness:best", 0.6))
    ]
    found = {"n": 40, "difference": 0.4, "low": 0.2, "high": 0.6, "p": 0.001, "better": "harness:best"}
    comparison = {**row, "a": "harness:best", "b": "harness:first", **found}
    write_json(ctx.out / "summary.json", {"evaluations": evaluations, "comparisons": [comparison]})


def release(ctx: Context) -> None:
    evaluation(ctx.out / "evaluation", "align")
    write_text(ctx.out / "model" / "config.json", "{}")
    candidates = [
        {"name": name, "objective": value, "terms": {"reasoning": value}, "passed": name == "align", "failed": failed}
        | {"parameters": 262_976, "bytes": 1_000_000, "flops_per_token": 1, "answer_tokens": 5.0}
        for name, value, failed in (("grpo", 0.8, ["size"]), ("align", 0.7, []))
    ]
    gate = {"candidate": "grpo", "gate": "size", "value": 2.0, "limit": 1.0, "passed": False, "detail": "2, at most 1"}
    decision = {
        "path": "model",
        "champion": "align",
        "reference": "align",
        "passed": True,
        "objective": {"weights": {"reasoning": 1.0}, "cost": {}, "mode": "sampled"},
        "reasons": ["align has the highest objective (0.700) of the 1 candidates that pass every gate."],
        "candidates": candidates,
        "gates": [gate],
        "comparisons": [],
    }
    write_json(ctx.out / "release.json", decision)
    write_json(ctx.out / "log" / "latency.json", {"align": {"tokens_per_second": 100.0, "ms_per_answer": 20.0}})


def traffic_data(ctx: Context) -> None:
    write_json(ctx.out / "funnel.json", funnel())


def remix(ctx: Context) -> None:
    half = dict.fromkeys(SOURCES, 0.5)
    reasons = [f"{source}: 0.500 -> 0.500 (as the mean)" for source in SOURCES]
    write_json(ctx.out / "mixture.json", {"before": half, "after": half, "epochs": half, "reasons": reasons})


def decision(ctx: Context, name: str, metric: str) -> None:
    before, after = ("align", "retrain") if name == "traffic" else ("pretrain_control", "pretrain_next")
    row = {"a": after, "b": before, "task": "arithmetic", "metric": metric, "margin": 0.06, "n": 24, "difference": 0.1}
    row |= {"low": 0.05, "high": 0.2, "p": 0.01, "p_holm": 0.01, "better": "a", "inferior": False, "ungradable": 0}
    value = {"name": name, "before": before, "after": after, "decision": "promote", "reasons": ["It is better."]}
    write_json(ctx.out / "decision.json", {**value, "comparisons": [row]})


WRITERS: dict[str, Callable[[Context], None]] = {
    "raw": raw,
    "tasks": tasks,
    "data": data,
    "graders": graders,
    "plan": plan,
    "harness": harness,
    "release": release,
    "traffic_data": traffic_data,
    "remix": remix,
    "loop_traffic": partial(decision, name="traffic", metric="sampled pass@1"),
    "loop_benchmarks": partial(decision, name="benchmarks", metric="bits_per_byte"),
}
