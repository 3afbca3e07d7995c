"""The release stages: `release` chooses, `gate` and `gate_benchmarks` decide at the end of the two loops.

`release` takes `candidates.<node>` (checkpoints), `evaluations.<node>` (their evaluations, paired by the checkpoint
that each says it is about), `tasks`, `graders`, and where the line has them `harness` and `data`; it writes
release.json, model/, evaluation/, harness.json and MODEL_CARD.md. It chooses on the development part; the held-out part
is read once, for the check of what was chosen. Measured latency goes under log/ and decides nothing. Not covered:
moving the `champion` ref (the pipeline does it).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loopline.attempts.config import HarnessConfig, read_harness, write_harness
from loopline.base.errors import UserError
from loopline.base.files import read_json, write_bytes, write_json, write_text
from loopline.environments.environment import Environment
from loopline.environments.registry import default_environment, load_environment
from loopline.grading.graders import GraderSet
from loopline.inference.engine import Sampling, TorchEngine
from loopline.model.licence import OTHER, licence_file, licence_of
from loopline.release.card import model_card
from loopline.release.choose import Decision, choose, final_check, quality
from loopline.release.config import BenchmarkGateConfig, GateConfig, Mode, ReleaseConfig
from loopline.release.decide import Measured, check_last, checkpoint_name, compare_sets, compare_sources, decide
from loopline.release.evidence import Evidence, Part, gather, places_of, read_items, shared_mode
from loopline.release.files import copy_checkpoint
from loopline.release.tools import tool_stability
from loopline.store.artifact import Artifact
from loopline.store.context import Context
from loopline.tasks.task import Task, load_tasks

EVALUATION_FILES = ("items.jsonl", "summary.json", "bpb.jsonl")
"""What the traffic loop's gate compares a candidate with; a release carries its own evaluation."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Candidate:
    """A checkpoint and the evaluation that is about it."""

    name: str
    checkpoint: Artifact
    evaluation: Artifact


def many(inputs: Mapping[str, Artifact], role: str) -> dict[str, Artifact]:
    """Node -> artifact of a role that takes several, in the order of the line."""
    return {name.partition(".")[2]: item for name, item in inputs.items() if name.partition(".")[0] == role}


def about(evaluation: Artifact, checkpoints: Mapping[str, Artifact]) -> str | None:
    """The node whose checkpoint an evaluation says it is about: by content, and by name among equal contents."""
    record = evaluation.meta.get("inputs", {}).get("checkpoint")
    stage = record["stage"] if record else checkpoint_name(evaluation.path, "")
    same = [
        name
        for name, item in checkpoints.items()
        if (item.digest == record["digest"] if record else stage in (name, item.stage))
    ]
    return next((name for name in same if stage in (name, checkpoints[name].stage)), same[0] if same else None)


def candidates_of(config: ReleaseConfig, inputs: Mapping[str, Artifact]) -> list[Candidate]:
    """The candidates in the order of the line; the newest evaluation of a checkpoint counts.

    Raises `UserError` when a named one is missing or was not evaluated, or when there is none.
    """
    checkpoints = many(inputs, "candidates")
    evaluated: dict[str, Artifact] = {}
    for evaluation in many(inputs, "evaluations").values():
        name = about(evaluation, checkpoints)
        if name is not None:
            evaluated[name] = evaluation
    for name in config.candidates:
        if name not in checkpoints:
            known = ", ".join(checkpoints) or "none"
            raise UserError(f"There is no checkpoint {name!r} to release", f"name candidates among: {known}")
        if name not in evaluated:
            raise UserError(
                f"The release candidate {name!r} was not evaluated",
                f"add {name} to `evaluate: {{after: [...]}}`, or drop it from `candidates`",
            )
    names = [name for name in checkpoints if name in evaluated and name in (config.candidates or evaluated)]
    if not names:
        raise UserError(
            "The release has no candidates: no checkpoint before it was evaluated",
            "evaluate at least one (`evaluate: {after: all}`)",
        )
    return [Candidate(name, checkpoints[name], evaluated[name]) for name in names]


class Measuring:
    """Gathers the evidence about one candidate on one part."""

    def __init__(self, config: ReleaseConfig, inputs: Mapping[str, Artifact], graders: GraderSet, mode: Mode) -> None:
        self.config = config
        self.tasks = inputs["tasks"].path
        self.graders = graders
        self.mode = mode
        self.places = places_of(self.tasks)
        self.harness, named = HarnessConfig(), None
        if "harness" in inputs:
            self.harness, named = read_harness(inputs["harness"] / "harness.json")
        self.environment = config.tools.environment or named or default_environment(self.tasks)
        self._worlds: dict[str, tuple[Environment, list[Task]] | None] = {}

    def world(self, part: Part) -> tuple[Environment, list[Task]] | None:
        """The environment and the tasks tagged `tools` of a part; None without either."""
        if part not in self._worlds:
            tasks = [task for task in load_tasks(self.tasks / f"{part}.jsonl") if "tools" in task.tags]
            found = None
            if tasks and self.environment is not None:
                found = (load_environment(self.environment, self.tasks, self.graders, part), tasks)
            self._worlds[part] = found
        return self._worlds[part]

    def gather(self, one: Candidate, part: Part, ctx: Context, latencies: dict[str, Row] | None = None) -> Evidence:
        """Scores from the evaluation, tool stability from attempts made here."""
        found = gather(one.name, one.checkpoint.path, one.evaluation.path, self.mode, part, self.places)
        world = self.world(part)
        timed = latencies is not None and self.config.latency_prompts
        if world is None and not timed:
            return found
        engine = TorchEngine.from_checkpoint(one.checkpoint.path, device=ctx.device)
        if latencies is not None:
            latencies[one.name] = latency(engine, load_tasks(self.tasks / f"{part}.jsonl"), self.config.latency_prompts)
        if world is None:
            return found
        context = engine.model.config.max_position_embeddings
        seed = ctx.seed_for(f"tools/{part}") % 2**31
        tools = tool_stability(engine, self.harness, *world, self.config.tools, context, seed)
        return replace(found, tools=tools)


def release(config: ReleaseConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """Gather the evidence, decide, check, and write the release.

    Raises `UserError` when the chosen candidate does not pass on the held-out part and the config says to stop then.
    """
    candidates = {one.name: one for one in candidates_of(config, inputs)}
    mode = shared_mode([one.evaluation.path for one in candidates.values()], config.mode)
    seed = ctx.seed_for("comparisons") % 2**31
    latencies: dict[str, Row] = {}
    with ExitStack() as stack:
        graders = stack.enter_context(GraderSet.from_json(inputs["graders"] / "graders.json"))
        bar = stack.enter_context(ctx.progress("release candidates", len(candidates)))
        measuring = Measuring(config, inputs, graders, mode)
        everyone = []
        for one in candidates.values():
            everyone.append(measuring.gather(one, "dev", ctx, latencies))
            bar.advance()
        decision = choose(everyone, config, seed)
        control = control_of(decision, everyone)
        names = dict.fromkeys([decision.champion, decision.reference, *([control] if control else [])])
        held = {name: measuring.gather(candidates[name], "heldout", ctx) for name in names}
    beside = held[control] if control else None
    check = final_check(held[decision.champion], held[decision.reference], beside, config, seed)
    decision = settle(decision, check, config)
    _write(config, inputs, ctx, candidates, decision, check, mode)
    if measuring.environment is not None or "harness" in inputs:
        world = measuring.world("dev")
        # The service shows a policy no schemas of tools that it was trained on.
        tools = world[0].tools if world else ()
        write_harness(ctx.out / "harness.json", measuring.harness, measuring.environment, tools)
    write_json(ctx.out / "log" / "latency.json", latencies)


def control_of(decision: Decision, everyone: Sequence[Evidence]) -> str | None:
    """The strongest candidate before the champion in the line, or after it where there is none before."""
    names = [one.name for one in everyone]
    at = names.index(decision.champion)
    pool = everyone[:at] or everyone[at + 1 :]
    if not pool:
        return None
    return max(pool, key=lambda one: (quality(one, everyone, decision.objective), -names.index(one.name))).name


def settle(decision: Decision, check: Row, config: ReleaseConfig) -> Decision:
    """The decision after the check on the held-out part."""
    if check["passed"] or not decision.passed:
        return decision
    failed = "; ".join(check["failed"])
    if config.final_check == "fail":
        raise UserError(
            f"{decision.champion} was chosen on the development part and FAILS THE LAST CHECK on the held-out part: "
            f"{failed}",
            "train further or change the gates; final_check: reference releases the reference, marked, instead",
        )
    lead = f"THE LAST CHECK FAILED: on held-out tasks {decision.champion} fails ({failed}), so the reference "
    reasons = [f"{lead}{decision.reference} is released, marked as not having passed.", *decision.reasons]
    return replace(decision, champion=decision.reference, passed=False, reasons=reasons)


def _write(
    config: ReleaseConfig,
    inputs: Mapping[str, Artifact],
    ctx: Context,
    candidates: Mapping[str, Candidate],
    decision: Decision,
    check: Row,
    mode: Mode,
) -> None:
    champion = candidates[decision.champion]
    copy_checkpoint(champion.checkpoint.path, ctx.out / "model")
    for name in EVALUATION_FILES:
        source = champion.evaluation / name
        if source.exists():
            write_bytes(ctx.out / "evaluation" / name, source.read_bytes())
    # The champion's own directory first: training may have carried the files of its start along.
    folders = [champion.checkpoint.path, *(one.checkpoint.path for one in candidates.values())]
    origin = next((folder for folder in folders if licence_of(folder)), None)
    licence = config.licence or (licence_of(origin) if origin else None) or OTHER
    if origin and (file := licence_file(origin)):
        write_bytes(ctx.out / "model" / file.name, file.read_bytes())
    write_json(
        ctx.out / "release.json",
        {
            "path": "model",
            "name": config.name,
            "champion": decision.champion,
            "reference": decision.reference,
            "passed": decision.passed,
            "objective": {"weights": decision.objective, "mode": mode},
            "reasons": decision.reasons,
            "candidates": decision.candidates,
            "gates": decision.gates,
            "comparisons": decision.comparisons,
            "power": decision.power,
            "final_check": check,
            "control": check["control"],
            "licence": licence,
        },
    )
    data = read_json(inputs["data"] / "manifest.json") if "data" in inputs else None
    harness = read_harness(inputs["harness"] / "harness.json")[0].model_dump() if "harness" in inputs else None
    digests = [(name, inputs[name].digest) for name in sorted(inputs)]
    card = model_card(config.name, decision, check, mode, digests, data, harness, licence)
    write_text(ctx.out / "MODEL_CARD.md", card)
    row = next(row for row in decision.candidates if row["name"] == decision.champion)
    told = f"{decision.champion}, objective {row['objective']:.3f}, of {len(decision.candidates)} candidates"
    ctx.metrics.summary(
        headline=told if decision.passed else f"{told}, NOT PASSED",
        champion=decision.champion,
        objective=row["objective"],
        passed=float(decision.passed),
        control=None if check["control"] is None else check["control"]["name"],
    )


def gate(config: GateConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """Loop A: whether the retrained candidate (`after`, an evaluation) replaces the champion (`before`)."""
    _gate("traffic", config, inputs, ctx, sources=False)


def gate_benchmarks(config: BenchmarkGateConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """Loop B: whether the base of the new mixture (`after`) replaces the old base (`before`)."""
    _gate("benchmarks", config, inputs, ctx, sources=True)


def _gate(name: str, config: GateConfig, inputs: Mapping[str, Artifact], ctx: Context, sources: bool) -> None:
    champion = inputs["before"]
    before = champion / "evaluation" if (champion / "release.json").exists() else champion.path
    after = inputs["after"].path
    control = inputs["control"].path if "control" in inputs else None
    places = places_of(inputs["tasks"].path if "tasks" in inputs else None)
    seed = ctx.seed_for("comparisons") % 2**31
    mode = shared_mode([path for path in (before, after, control) if path is not None], config.mode)

    def measure(one: Path, part: Part) -> list[Measured]:
        left, right = (read_items(path, mode, part, places) for path in (one, after))
        found = compare_sets(left, right, mode, config, seed)
        return found + (compare_sources(one, after, part, config, seed) if sources else [])

    names = (checkpoint_name(before, "before"), checkpoint_name(after, "after"))
    beside = None if control is None else measure(control, "dev")
    decision = decide(name, names, measure(before, "dev"), beside, config, seed)
    if decision["decision"] == "promote":
        decision = check_last(decision, measure(before, "heldout"), config, seed)
    write_json(ctx.out / "decision.json", decision)
    told = f"{decision['decision']}: {decision['reasons'][0]} An equal candidate passes at {decision['power']:.0%}."
    promoted = float(decision["decision"] == "promote")
    ctx.metrics.summary(headline=told, promote=promoted, power=decision["power"])


def latency(engine: TorchEngine, tasks: Sequence[Task], prompts: int) -> dict[str, float]:
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
