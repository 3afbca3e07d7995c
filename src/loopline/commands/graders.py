"""A user's grader: read, audited, and tried on what the policy writes, before anything is trained against it.

    definition = load_grader("grader.py")           # or a .json of OpenAI's grader format, or the name gsm8k

The stage `graders` writes graders.json, audit.json, probe.json and the prompts that fit the model (train.jsonl). It
refuses a grader that pays for junk, that fails on everything or that never pays; `force` goes on and says so. A policy
that solves nothing is no fault of the grader: that is said, and training goes on. Not covered: graders that are models.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from loopline.base.errors import UserError
from loopline.base.files import write_json, write_jsonl
from loopline.commands.config import GRADER, ProbeConfig
from loopline.grading.audit import audit, failed_probes, good_text
from loopline.grading.grade import Grade, Sample
from loopline.grading.graders import GraderSet, check_definition
from loopline.store.artifact import Artifact
from loopline.store.context import Context
from loopline.tasks.config import READY
from loopline.tasks.stage import read_grader
from loopline.tasks.task import Task, load_tasks
from loopline.training.lengths import position_limit

WITHOUT_REFERENCE = ("empty", "format_only", "copied_prompt")
"""Probes of the audit that need no reference answer."""
FORCE = "to go on nevertheless, add --force-grader"


def load_grader(name: str) -> dict[str, Any]:
    """The definition of a grader: a .json file, a .py file with `grade(sample, item)`, or the name of a ready one.

    Raises `UserError` for a missing file and a definition that cannot be used.
    """
    path = Path(name)
    if name in READY and not path.exists():
        return {"type": name}
    if not path.is_file():
        raise UserError(
            f"There is no grader {name}", f"give a .json or .py file, or the name of a ready one ({', '.join(READY)})"
        )
    definition = read_grader(path)
    check_definition(definition, str(path))
    return dict(definition)


def graders(config: ProbeConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """Audit the grader on the prompts of "data" and try it on answers of "model"."""
    from loopline.inference.engine import TorchEngine

    tasks = load_tasks(inputs["data"] / "train.jsonl")
    model = inputs["model"].path
    with GraderSet.from_defs({GRADER: config.definition}, workers=ctx.threads) as grader_set:
        with ctx.progress("auditing the grader", 2) as bar:
            paid = check_references(grader_set, tasks, config)
            bar.advance()
            report = audit_answers(grader_set, tasks, ctx.seed, config.audit_tasks)
            bar.advance()
        entry = report[GRADER]
        if not entry["passed"]:
            entry["forced"] = _object(
                f"The grader fails its audit, so training would learn what it pays for: "
                f"{'; '.join(failed_probes(entry))}",
                "make it strict (compare the final answer, refuse lists of answers and copies of the prompt), or",
                config.force,
            )
        engine = TorchEngine.from_checkpoint(model, device=ctx.device)
        kept = that_fit(engine.tokenizer, tasks, config, position_limit(model))
        probe = probe_policy(engine, grader_set, kept, config, paid, ctx)
    write_json(ctx.out / "graders.json", {GRADER: config.definition})
    write_json(ctx.out / "audit.json", report)
    write_json(ctx.out / "probe.json", {key: value for key, value in probe.items() if key != "answers"})
    write_jsonl(ctx.out / "probe.jsonl", probe["answers"])
    write_jsonl(ctx.out / "train.jsonl", (row_of(task) for task in kept))
    ctx.metrics.summary(passed=entry["passed"], prompts=len(kept), probe_mean=probe["mean"])


def row_of(task: Task) -> dict[str, Any]:
    """A task as a row of a tasks file."""
    return {
        "id": task.id,
        "task_set": task.task_set,
        "messages": list(task.messages),
        "answer": task.answer,
        "grader": task.grader,
        "item": task.item,
    }


def warn(text: str) -> None:
    """Tell the user at once; it is no error."""
    print(f"    Note: {text}", file=sys.stderr, flush=True)


def _object(what: str, fix: str, force: bool) -> bool:
    """Refuse, or say that `force` overrules; returns whether it did."""
    if not force:
        raise UserError(what, f"{fix} {FORCE}")
    warn(f"{what}. Going on, as --force-grader says.")
    return True


def check_references(graders: GraderSet, tasks: Sequence[Task], config: ProbeConfig) -> bool | None:
    """Whether the grader pays for reference answers; None when there are none. Refuses one that fails on all of them,
    or pays for none.
    """
    some = [task for task in tasks if task.answer][: config.audit_tasks]
    if not some:
        return None
    grades = graders.grade([Sample(task, good_text(task)) for task in some], GRADER)
    if all(grade.score is None for grade in grades):
        _object(
            f"The grader failed on every one of {len(some)} reference answers; the first time: "
            f"{grades[0].evidence or 'no score'}",
            "fix the grader (it sees sample['output_text'] and the file's columns in item), or",
            config.force,
        )
        return False
    if not any(grade.score for grade in grades):
        first = next(number for number, grade in enumerate(grades) if grade.score is not None)
        _object(
            f"The grader never pays: it gave 0 to every one of {len(some)} reference answers, such as "
            f"{good_text(some[first])[-80:]!r} for {some[first].id}"
            + (f" ({grades[first].evidence})" if grades[first].evidence else ""),
            "compare with what the file's columns hold (--columns answer=... names the reference), or",
            config.force,
        )
        return False
    return True


def audit_answers(graders: GraderSet, tasks: Sequence[Task], seed: int, limit: int) -> dict[str, dict[str, Any]]:
    """The audit of the line; where prompts have no references, its probes that need none."""
    known = [task for task in tasks if task.answer]
    if known:
        return audit(
            graders, apart(graders, Random(f"{seed}/apart").sample(known, min(limit, len(known)))), seed, limit
        )
    report = audit(graders, tasks, seed, limit)
    for entry in report.values():
        entry["probes"] = [row for row in entry["probes"] if row["probe"] in WITHOUT_REFERENCE]
        entry["passed"] = not any(row["pays"] or row.get("ungradable") for row in entry["probes"])
    return report


def apart(graders: GraderSet, tasks: Sequence[Task]) -> list[Task]:
    """Those of the tasks whose answers differ from one another to the grader.

    The audit sends the answer of one task to another as a wrong one; two sums that come to the same number would make
    it a right one. A grader to which most answers are alike is shown them all: that is what the audit is to find.
    """
    pairs = [(i, j) for i in range(len(tasks)) for j in range(i)]
    grades = graders.grade([Sample(tasks[i], good_text(tasks[j])) for i, j in pairs], GRADER) if pairs else []
    alike = {pair for pair, grade in zip(pairs, grades, strict=True) if grade.score}
    kept: list[int] = []
    for number in range(len(tasks)):
        if not any((number, other) in alike for other in kept):
            kept.append(number)
    return [tasks[number] for number in kept] if 2 * len(kept) >= len(tasks) else list(tasks)


def that_fit(tokenizer: Any, tasks: Sequence[Task], config: ProbeConfig, limit: int | None) -> list[Task]:
    """The prompts that leave room for an answer of `max_new_tokens`. Raises `UserError` for others, or drops them."""
    lengths = [len(tokenizer.render(list(task.messages), add_generation_prompt=True)) for task in tasks]
    if limit is None:
        return list(tasks)
    space = limit - config.max_new_tokens
    long = [number for number, length in enumerate(lengths) if length > space]
    if long and config.overlong == "refuse":
        longest = max(long, key=lambda number: lengths[number])
        fix = "leave them out with --set grader.overlong=drop"
        if lengths[longest] + 1 < limit:
            fix = f"leave them room with --set max_new_tokens={limit - lengths[longest]}, or {fix}"
        raise UserError(
            f"{len(long)} of {len(tasks)} prompts are too long: the model takes {limit} tokens, of which an answer may "
            f"take {config.max_new_tokens}; the longest prompt, {tasks[longest].id}, has {lengths[longest]}",
            fix,
        )
    kept = [task for task, length in zip(tasks, lengths, strict=True) if length <= space]
    if not kept:
        raise UserError(f"No prompt leaves room for {config.max_new_tokens} tokens of answer", "lower max_new_tokens")
    if long:
        warn(f"{len(long)} of {len(tasks)} prompts are too long and left out.")
    return kept


def probe_policy(
    engine: Any, graders: GraderSet, tasks: Sequence[Task], config: ProbeConfig, paid: bool | None, ctx: Context
) -> dict[str, Any]:
    """Grade a few answers of the policy: {"n", "mean", "ungradable", "cut_off", "verdict", "answers"}.

    `paid` says whether reference answers paid. Raises `UserError` when nothing can be graded, or nothing pays and no
    reference ever did.
    """
    from loopline.attempts.ask import ask, seed_of
    from loopline.inference.engine import Sampling

    chosen = [tasks[number] for number in sorted(ctx.rng("probe").permutation(len(tasks))[: config.probe_prompts])]
    sampling = Sampling(config.max_new_tokens, temperature=config.temperature, n=config.probe_samples)
    seeds = [seed_of(ctx.seed, "probe", task.id) for task in chosen]
    with ctx.progress("trying the grader on the policy", len(chosen)) as bar:
        groups = ask(engine, chosen, sampling, graders=graders, seeds=seeds, progress=bar.advance)
    attempts = [attempt for group in groups for attempt in group]
    samples = [attempt.as_sample() for attempt in attempts]
    grades = [attempt.grade for attempt in attempts if attempt.grade is not None]
    known = [grade.score for grade in grades if grade.score is not None]
    cut = sum(sample.finish == "length" for sample in samples)
    verdict = judge(samples, grades, cut, paid, config)
    if verdict:
        warn(verdict)
    return {
        "n": len(samples),
        "mean": round(sum(known) / len(known), 6) if known else None,
        "ungradable": len(samples) - len(known),
        "cut_off": cut,
        "verdict": verdict,
        "answers": [
            {"task": s.task.id, "text": s.text, "finish": s.finish, "score": g.score, "evidence": g.evidence}
            for s, g in zip(samples, grades, strict=True)
        ],
    }


def judge(samples: Sequence[Sample], grades: Sequence[Grade], cut: int, paid: bool | None, config: ProbeConfig) -> str:
    """What the probe's grades mean for training, in words; "" when all is well. Raises as `probe_policy` says."""
    n, known = len(samples), [grade.score for grade in grades if grade.score is not None]
    live = [grade for sample, grade in zip(samples, grades, strict=True) if sample.finish != "length"]
    if n and (not known or (live and all(grade.score is None for grade in live))):
        bad = next(grade for grade in grades if grade.score is None)
        _object(
            f"The grader failed on {n - len(known)} of {n} answers of the policy, all that it was asked to judge; the "
            f"first time: {bad.evidence or 'no score'}",
            "fix the grader until it returns a number from 0 to 1 for any text, or",
            config.force,
        )
        return f"The grader failed on {n - len(known)} of {n} answers of the policy."
    if cut == n:
        return (
            f"All {n} answers tried were cut off at {config.max_new_tokens} tokens, which earns 0 whatever they say: "
            "raise max_new_tokens, or fine-tune with `loopline sft` first so that answers end."
        )
    if not any(known):
        if paid is None:
            _object(
                f"The grader never pays: it gave 0 to all {n} answers of the policy, and there are no references "
                "that could show that it ever does",
                "check the grader, name a reference column with --columns answer=..., try more answers with --set "
                "grader.probe_prompts=64, or",
                config.force,
            )
        return (
            f"None of {n} answers tried earned anything, though references do: the policy is too weak for these "
            "prompts, and training learns nothing until a sample is right. Fine-tune with `loopline sft` first, or "
            "use easier prompts."
        )
    if len(known) < n:
        return f"The grader failed on {n - len(known)} of {n} answers of the policy; those count neither way."
    if min(known) == max(known):
        return f"All {n} answers tried earned {known[0]:.2f}: as long as all earn the same there is nothing to learn."
    return ""
