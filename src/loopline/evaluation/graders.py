"""Stage `graders`: every grader that the tasks name, and further ones, audited and tried on what the policy writes.

Writes graders.json (the definitions) and audit.json; with a policy also probe.json ({grader: {"n", "mean",
"ungradable", "cut_off", "verdict"}}) and probe.jsonl (its answers). It refuses a grader of the tasks that rewards
junk, fails on everything or never gives a score above 0; `force` goes on and says so. Where the policy solves nothing,
the grader is not refused: a note says so, and the run goes on. Not covered: graders that are models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loopline.attempts.ask import ask, seed_of
from loopline.attempts.attempt import Attempt
from loopline.attempts.fit import that_fit
from loopline.base.errors import UserError
from loopline.base.files import read_json, write_json, write_jsonl, write_text
from loopline.grading.audit import audit_digest, failed_probes
from loopline.grading.config import GradersConfig, ProbeConfig
from loopline.grading.grade import Grade, Sample
from loopline.grading.graders import GraderSet
from loopline.grading.review import check_references, objection, review, warn
from loopline.inference.engine import Engine, Sampling, TorchEngine
from loopline.store.artifact import Artifact
from loopline.store.context import Context
from loopline.tasks.config import READY
from loopline.tasks.task import Task, load_tasks
from loopline.training.lengths import position_limit

PER_SET = 400
"""Tasks of each set that are looked at."""


def graders(config: GradersConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """Audit every grader, try it on the policy, and write the definitions down. Raises `UserError` as said above."""
    tasks = example_tasks(inputs["tasks"].path)
    definitions = all_definitions(config, inputs["tasks"].path, tasks)
    named = {task.grader for task in tasks}
    required = named | set(config.required)
    report: dict[str, Any] = {}
    paid: dict[str, bool | None] = {}
    with GraderSet.from_defs(definitions, workers=ctx.threads) as grader_set:
        with ctx.progress("auditing graders", len(definitions)) as bar:
            for name in sorted(definitions):
                mine = [task for task in tasks if task.grader == name]
                if name in required:
                    paid[name] = check_references(grader_set, name, mine, config.audit_tasks, config.force)
                report[name] = entry = review(grader_set, name, tasks, ctx.seed, config.audit_tasks)
                if not entry["passed"] and name in required:
                    entry["forced"] = objection(
                        f"The grader {name!r} fails its audit, so training would learn what it pays for: "
                        f"{'; '.join(failed_probes(entry))}",
                        "make it strict (compare the final answer, refuse lists of answers and copies of the prompt), "
                        "or",
                        config.force,
                    )
                bar.advance()
        probes: dict[str, Any] = {}
        if "policy" in inputs and config.probe.prompts:
            probes = _probe(config, inputs["policy"].path, grader_set, tasks, paid, ctx)
    write_text(ctx.out / "log" / "audit.txt", audit_digest(report) + "\n")
    write_json(ctx.out / "graders.json", definitions)
    write_json(ctx.out / "audit.json", report)
    passed = sum(entry["passed"] for entry in report.values())
    means = {f"probe_mean_{name}": probe["mean"] for name, probe in probes.items()}
    ctx.metrics.summary(graders=len(report), passed=passed, **means)


def example_tasks(tasks: Path) -> list[Task]:
    """Tasks of every set: of its training part, or of another where that is empty."""
    found: dict[str, list[Task]] = {}
    for part in ("train", "dev", "heldout"):
        path = tasks / f"{part}.jsonl"
        here: dict[str, list[Task]] = {}
        for task in load_tasks(path, limit=PER_SET) if path.exists() else []:
            here.setdefault(task.task_set, []).append(task)
        found = {**here, **found}
    return [task for members in found.values() for task in members]


def all_definitions(config: GradersConfig, tasks: Path, examples: Sequence[Task]) -> dict[str, dict[str, Any]]:
    """The definitions of the tasks artifact and of the settings. Raises `UserError` for a name with none or two."""
    path = tasks / "graders.json"
    theirs: dict[str, dict[str, Any]] = read_json(path) if path.exists() else {}
    for name in sorted(theirs.keys() & config.definitions.keys()):
        # A ready grader may be redefined; one that a task set brings may not.
        if theirs[name] not in (config.definitions[name], {"type": name}):
            raise UserError(f"Two graders are called {name!r}", f"rename the one under graders.definitions.{name}")
    definitions = {**theirs, **config.definitions}
    for task in examples:
        if task.grader not in definitions and task.grader in READY:
            definitions[task.grader] = {"type": task.grader}
        if task.grader not in definitions:
            raise UserError(
                f"The task set {task.task_set} names the grader {task.grader!r}, which is neither ready nor defined",
                f"define it under graders.definitions, or use one of {', '.join(READY)}",
            )
    for name in config.required:
        if name not in definitions:
            raise UserError(
                f"`required` names the grader {name!r}, which is not defined",
                f"define it, or use {', '.join(sorted(definitions))}",
            )
    return definitions


def _probe(
    config: GradersConfig,
    policy: Path,
    graders: GraderSet,
    tasks: Sequence[Task],
    paid: Mapping[str, bool | None],
    ctx: Context,
) -> dict[str, Any]:
    """Try the graders of the tasks on the policy's answers, and write down what came of it."""
    engine = TorchEngine.from_checkpoint(policy, device=ctx.device)
    kept = that_fit(engine.tokenizer, tasks, config.probe.max_new_tokens, position_limit(policy), config.overlong)
    if len(kept) < len(tasks):
        warn(f"{len(tasks) - len(kept)} of {len(tasks)} prompts are too long for the policy and left out.")
    attempts = probe_policy(engine, graders, kept, config.probe, ctx)
    probes = {}
    for name in dict.fromkeys(attempt.task.grader for attempt in attempts):
        mine = [attempt for attempt in attempts if attempt.task.grader == name]
        probes[name] = _told(name, mine, paid.get(name), config)
    write_json(ctx.out / "probe.json", probes)
    write_jsonl(ctx.out / "probe.jsonl", (attempt.to_row() for attempt in attempts))
    return probes


def probe_policy(
    engine: Engine, graders: GraderSet, tasks: Sequence[Task], config: ProbeConfig, ctx: Context
) -> list[Attempt]:
    """Graded attempts at a few tasks, every grader in turn."""
    by_grader: dict[str, list[Task]] = {}
    for number in ctx.rng("probe").permutation(len(tasks)):
        by_grader.setdefault(tasks[number].grader, []).append(tasks[number])
    each = max(1, config.prompts // len(by_grader))
    chosen = [task for name in sorted(by_grader) for task in by_grader[name][:each]]
    sampling = Sampling(config.max_new_tokens, temperature=config.temperature, n=config.samples)
    seeds = [seed_of(ctx.seed, "probe", task.id) for task in chosen]
    with ctx.progress("trying the graders on the policy", len(chosen)) as bar:
        groups = ask(engine, chosen, sampling, graders=graders, seeds=seeds, progress=bar.advance)
    return [attempt for group in groups for attempt in group]


def _told(name: str, attempts: Sequence[Attempt], paid: bool | None, config: GradersConfig) -> dict[str, Any]:
    samples = [attempt.as_sample() for attempt in attempts]
    grades = [attempt.grade for attempt in attempts if attempt.grade is not None]
    known = [grade.score for grade in grades if grade.score is not None]
    verdict = judge(name, samples, grades, paid, config)
    if verdict:
        warn(verdict)
    return {
        "n": len(samples),
        "mean": round(sum(known) / len(known), 6) if known else None,
        "ungradable": len(samples) - len(known),
        "cut_off": sum(sample.finish == "length" for sample in samples),
        "verdict": verdict,
    }


def judge(
    name: str, samples: Sequence[Sample], grades: Sequence[Grade], paid: bool | None, config: GradersConfig
) -> str:
    """What a grader's grades of the policy's answers mean for training, in words; "" when all is well.

    `paid` says whether reference answers scored. Raises `UserError` when nothing can be graded, or when nothing scores
    and no reference ever did.
    """
    n, known = len(samples), [grade.score for grade in grades if grade.score is not None]
    cut = sum(sample.finish == "length" for sample in samples)
    live = [grade for sample, grade in zip(samples, grades, strict=True) if sample.finish != "length"]
    if n and (not known or (live and all(grade.score is None for grade in live))):
        bad = next(grade for grade in grades if grade.score is None)
        objection(
            f"The grader {name!r} failed on {n - len(known)} of {n} answers of the policy, all that it was asked to "
            f"judge; the first time: {bad.evidence or 'no score'}",
            "fix the grader until it returns a number from 0 to 1 for any text, or",
            config.force,
        )
        return f"The grader {name!r} failed on {n - len(known)} of {n} answers of the policy."
    if cut == n:
        return (
            f"All {n} answers tried with the grader {name!r} were cut off at {config.probe.max_new_tokens} tokens, "
            "which earns 0 whatever they say: raise max_new_tokens, or fine-tune with `sft` first so that answers end."
        )
    if not any(known):
        if paid is None:
            objection(
                f"The grader {name!r} never pays: it gave 0 to all {n} answers of the policy, and there are no "
                "references that could show that it ever does",
                "check the grader, name a reference column with `answer`, try more answers with "
                "graders.probe.prompts=64, or",
                config.force,
            )
        return (
            f"None of {n} answers tried with the grader {name!r} earned anything: the policy is too weak for these "
            "prompts, and training learns nothing until a sample is right. Fine-tune with `sft` first, or use easier "
            "prompts."
        )
    if len(known) < n:
        return f"The grader {name!r} failed on {n - len(known)} of {n} answers of the policy; those count neither way."
    if min(known) == max(known):
        return (
            f"All {n} answers tried with the grader {name!r} earned {known[0]:.2f}: as long as all earn the same "
            "there is nothing to learn."
        )
    return ""
