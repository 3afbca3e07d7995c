"""The release stages: `release` chooses, `gate` and `gate_benchmarks` decide at the end of the two loops.

    loopline run recipes/laptop.yaml --until release

`release` takes each candidate's checkpoint and evaluation (`<name>` and `evaluate_<name>`), `tasks`, `graders`, and
where the line has them `harness` and `data`; it writes release.json, model/, harness.json and MODEL_CARD.md. Measured
latency goes under log/ and decides nothing. Not covered: moving the `champion` ref (the line does it).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loopline.attempts.config import HarnessConfig
from loopline.base.errors import UserError
from loopline.base.files import read_json, write_bytes, write_json, write_text
from loopline.grading.graders import GraderSet
from loopline.inference.engine import Sampling, TorchEngine
from loopline.model.checkpoint import TOKENIZER_FILES
from loopline.release.card import model_card
from loopline.release.choose import choose
from loopline.release.config import GateConfig, ReleaseConfig
from loopline.release.decide import checkpoint_name, compare_sets, compare_sources, decide
from loopline.release.evidence import Evidence, gather, read_items
from loopline.release.tools import load_harness, tool_stability
from loopline.store.artifact import Artifact
from loopline.store.context import Context
from loopline.tasks.task import Task, load_tasks

EVALUATION_FILES = ("items.jsonl", "summary.json", "bpb.jsonl")
"""What the traffic loop's gate compares a candidate with; a release carries its own evaluation."""
CHECKPOINT_FILES = ("config.json", "generation_config.json", "model.safetensors", *TOKENIZER_FILES)


def candidate_names(config: ReleaseConfig, inputs: Mapping[str, Artifact]) -> list[str]:
    """The candidates, sorted. Raises `UserError` when one lacks its checkpoint or evaluation."""
    names = config.candidates or tuple(name for name in inputs if f"evaluate_{name}" in inputs)
    for name in names:
        for needed in (name, f"evaluate_{name}"):
            if needed not in inputs:
                raise UserError(
                    f"The release candidate {name!r} has no input {needed!r}",
                    "name its checkpoint and evaluation among the stage's inputs, or drop it from `candidates`",
                )
    if not names:
        raise UserError("The release stage has no candidates", "give it inputs `<name>` and `evaluate_<name>`")
    return sorted(names)


def release(config: ReleaseConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """Gather the evidence, decide, and write the release."""
    names = candidate_names(config, inputs)
    tasks = load_tasks(inputs["tasks"] / "heldout.jsonl")
    unsafe = {task.id: bool(task.item.get("unsafe")) for task in tasks if task.task_set == "safety"}
    harness = load_harness(inputs["harness"] / "harness.json") if "harness" in inputs else HarnessConfig()
    everyone, latencies = [], {}
    with ctx.progress("release candidates", len(names)) as bar:
        for name in names:
            evidence = gather(name, inputs[name].path, inputs[f"evaluate_{name}"].path, config.mode, unsafe)
            engine = TorchEngine.from_checkpoint(inputs[name].path, device=ctx.device)
            tools = _tools(config, inputs, engine, harness, tasks, ctx)
            everyone.append(Evidence(**{**vars(evidence), "tools": tools}))
            latencies[name] = latency(engine, tasks, config.latency_prompts)
            bar.advance()
    decision = choose(everyone, config, ctx.seed_for("comparisons") % 2**31)
    copy_checkpoint(inputs[decision.champion].path, ctx.out / "model")
    for name in EVALUATION_FILES:
        source = inputs[f"evaluate_{decision.champion}"] / name
        if source.exists():
            write_bytes(ctx.out / "evaluation" / name, source.read_bytes())
    write_json(ctx.out / "harness.json", harness.model_dump())
    write_json(
        ctx.out / "release.json",
        {
            "path": "model",
            "name": config.name,
            "champion": decision.champion,
            "reference": decision.reference,
            "passed": decision.passed,
            "objective": {"weights": config.weights, "cost": config.cost, "mode": config.mode},
            "reasons": decision.reasons,
            "candidates": decision.candidates,
            "gates": decision.gates,
            "comparisons": decision.comparisons,
        },
    )
    write_json(ctx.out / "log" / "latency.json", latencies)
    card = model_card(
        config.name,
        decision,
        config.mode,
        [(name, inputs[name].digest) for name in sorted(inputs)],
        read_json(inputs["data"] / "manifest.json") if "data" in inputs else None,
        harness.model_dump() if "harness" in inputs else None,
        config.licence,
    )
    write_text(ctx.out / "MODEL_CARD.md", card)
    ctx.metrics.summary(objective=decision.candidates[0]["objective"], passed=float(decision.passed))


def gate(config: GateConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """Loop A: whether the retrained candidate (`after`, an evaluation) replaces the champion (`before`, a release)."""
    before, after = inputs["before"] / "evaluation", inputs["after"].path
    seed = ctx.seed_for("comparisons") % 2**31
    measured = compare_sets(read_items(before, config.mode), read_items(after, config.mode), config, seed)
    _write_decision("traffic", config, before, after, measured, ctx)


def gate_benchmarks(config: GateConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """Loop B: whether the base of the new mixture (`after`) replaces the old base (`before`)."""
    before, after = inputs["before"].path, inputs["after"].path
    measured = compare_sources(before, after, config, ctx.seed_for("comparisons") % 2**31)
    _write_decision("benchmarks", config, before, after, measured, ctx)


def _write_decision(name: str, config: GateConfig, before: Path, after: Path, measured: Any, ctx: Context) -> None:
    names = (config.before or checkpoint_name(before, "before"), config.after or checkpoint_name(after, "after"))
    decision = decide(name, *names, measured, config)
    write_json(ctx.out / "decision.json", decision)
    ctx.metrics.summary(promote=float(decision["decision"] == "promote"))


def _tools(
    config: ReleaseConfig,
    inputs: Mapping[str, Artifact],
    engine: TorchEngine,
    harness: HarnessConfig,
    tasks: list[Task],
    ctx: Context,
) -> dict[str, Any] | None:
    lookup = [task for task in tasks if task.task_set == "lookup"]
    if not lookup or "graders" not in inputs:
        return None
    context = engine.model.config.max_position_embeddings
    seed = ctx.seed_for("tools") % 2**31
    with GraderSet.from_json(inputs["graders"] / "graders.json") as graders:
        return tool_stability(engine, harness, lookup, inputs["tasks"].path, graders, config.tools, context, seed)


def latency(engine: TorchEngine, tasks: list[Task], prompts: int) -> dict[str, float]:
    """Tokens per second of one stream and milliseconds per answer, as measured now: information, not evidence."""
    chosen = tasks[:: max(1, len(tasks) // prompts)][:prompts] if prompts else []
    count, spent = 0, 0.0
    for number, task in enumerate(chosen):
        prompt = engine.tokenizer.render(task.messages, add_generation_prompt=True)
        started = time.perf_counter()
        count += sum(1 for _ in engine.stream(prompt, Sampling(max_new_tokens=48, seed=number)))
        spent += time.perf_counter() - started
    if not count:
        return {}
    return {"tokens_per_second": count / spent, "ms_per_answer": 1000 * spent / len(chosen)}


def copy_checkpoint(source: Path, target: Path) -> None:
    """Copy the files that make a checkpoint, and nothing a stage left beside them."""
    target.mkdir(parents=True, exist_ok=True)
    for name in CHECKPOINT_FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)
