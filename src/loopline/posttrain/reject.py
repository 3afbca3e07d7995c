"""Rejection sampling as a stage: sample the policy, grade, select, write a data set with its card, train on it.

    reject(RejectConfig(samples=16), {"policy": p, "start": p, "tasks": t, "graders": g}, ctx)

Several rounds are several nodes of a line, each with the one before it as its policy (`loopline reject --rounds 3`),
so that each is resumed, named and kept by itself. Writes accepted.jsonl, samples.jsonl, accepted.json and README.md
beside the checkpoint. Not covered: environments with tools (see `agents`), the line's own stage, which reuses the
rollouts of reinforcement learning instead of sampling anew (see `rft`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loopline.attempts.ask import ask
from loopline.attempts.attempt import Attempt
from loopline.base.errors import UserError
from loopline.base.files import write_json, write_jsonl, write_text
from loopline.chat.load import load_tokenizer
from loopline.grading.graders import GraderSet
from loopline.inference.engine import Sampling, TorchEngine
from loopline.posttrain.card import Section, dataset_card, quantiles, size_category
from loopline.posttrain.config import RejectConfig
from loopline.posttrain.grpo import refuse_bad_graders
from loopline.posttrain.scoring import score_conversations
from loopline.posttrain.selection import Selection, histogram, passes, select
from loopline.store.artifact import Artifact
from loopline.store.context import Context
from loopline.tasks.task import Task, load_tasks
from loopline.text.overlap import HeldoutText
from loopline.training.conversations import conversation_example
from loopline.training.finetune import fine_tune
from loopline.training.lengths import Item, position_limit


def reject(config: RejectConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """Sample "policy" on "tasks", and train "start" (without one, the policy) on what "graders" let pass.

    "heldout" (a tasks artifact) is kept out of prompts and answers; "reward_model" (a checkpoint) ranks answers for
    `select: best`. Raises `UserError` when too few answers pass.
    """
    tasks = load_tasks(inputs["tasks"] / "train.jsonl")
    refuse_bad_graders(inputs["graders"], {task.grader for task in tasks})
    heldout = heldout_text(inputs["heldout"] / "train.jsonl") if "heldout" in inputs else None
    clean = [task for task in tasks if heldout is None or not heldout.holds(task.prompt)]
    if not clean:
        raise UserError("Every prompt holds held-out text", "give training prompts that differ from the held-out file")
    order = sorted(ctx.rng("prompts").permutation(len(clean))[: config.prompts])
    groups = sample_groups([clean[number] for number in order], config, inputs, ctx)
    if "reward_model" in inputs:
        rank(groups, inputs["reward_model"].path, config, ctx)
    start = inputs.get("start", inputs["policy"]).path
    found = select(groups, config, heldout, ctx.rng("select"), position_limit(start))
    facts = describe(found, groups, config, len(tasks) - len(clean))
    if len(found.rows) < config.minimum:
        reasons = ", ".join(f"{count} {reason}" for reason, count in found.rejected.items() if count)
        raise UserError(
            f"Only {len(found.rows)} answers to {len(groups)} prompts were accepted, fewer than minimum "
            f"({config.minimum}); the others: {reasons or 'none'}",
            "sample more answers (--set samples=...), train the policy first, use easier prompts, or lower minimum",
        )
    write_jsonl(ctx.out / "samples.jsonl", groups)
    write_jsonl(ctx.out / "accepted.jsonl", found.rows)
    write_json(ctx.out / "accepted.json", facts)
    write_text(ctx.out / "README.md", card(facts))
    tokenizer = load_tokenizer(start)
    items = [
        Item(row["task"], (conversation_example(tokenizer, row["messages"], row["task"], row["given"]),))
        for row in found.rows
    ]
    done = fine_tune(start, {"accepted": items}, {"accepted": 1.0}, config, ctx, "training on accepted answers")
    ctx.metrics.summary(
        loss=done.loss, accepted=len(found.rows), mean_pass_rate=facts["mean_pass_rate"], steps=done.steps
    )


def heldout_text(path: Path) -> HeldoutText:
    """The prompts of a held-out tasks file."""
    return HeldoutText([task.prompt for task in load_tasks(path)])


def sample_groups(
    tasks: Sequence[Task], config: RejectConfig, inputs: Mapping[str, Artifact], ctx: Context
) -> list[dict[str, Any]]:
    """Graded answers of the policy, one group per task; saved every so many prompts, so that a killed run goes on."""
    engine = TorchEngine.from_checkpoint(inputs["policy"].path, device=ctx.device)
    sampling = Sampling(config.max_new_tokens, temperature=config.temperature, top_p=config.top_p, n=config.samples)
    with (
        GraderSet.from_json(inputs["graders"] / "graders.json", workers=ctx.threads) as graders,
        ctx.progress("sampling answers", len(tasks)) as bar,
    ):
        groups = ask(
            engine, tasks, sampling, graders=graders, seed=ctx.seed, state=ctx.state / "answers", progress=bar.advance
        )
    return [
        {
            "task": task.id,
            "task_set": task.task_set,
            "messages": list(task.messages),
            "outputs": [_output(engine, attempt) for attempt in group],
        }
        for task, group in zip(tasks, groups, strict=True)
    ]


def _output(engine: TorchEngine, attempt: Attempt) -> dict[str, Any]:
    """One answer as selection reads it."""
    row = attempt.to_row()
    output = {"text": attempt.text, **{name: row[name] for name in ("score", "finish", "tokens", "flags")}}
    if attempt.score:
        # Written as text and read again, an answer may take more tokens than were sampled.
        whole = [*attempt.task.messages, {"role": "assistant", "content": attempt.text}]
        output["length"] = len(engine.tokenizer.render(whole))
    return output


def rank(groups: Sequence[dict[str, Any]], model: Path, config: RejectConfig, ctx: Context) -> None:
    """Give every passing answer a "rank": what the reward model thinks of it."""
    passing = [(group, output) for group in groups for output in group["outputs"] if passes(output, config)]
    with ctx.progress("ranking answers", len(passing)) as bar:
        conversations = [
            [*group["messages"], {"role": "assistant", "content": output["text"]}] for group, output in passing
        ]
        scores = score_conversations(model, conversations, ctx.device, bar.advance)
    for (_, output), score in zip(passing, scores, strict=True):
        output["rank"] = round(score, 6)


def describe(
    found: Selection, groups: Sequence[Mapping[str, Any]], config: RejectConfig, heldout_prompts: int
) -> dict[str, Any]:
    """Counts, reasons, the histogram of pass rates, and lengths."""
    kept = [row["tokens"] for row in found.rows]
    rates = found.pass_rates
    return {
        "prompts": len(groups),
        "prompts_held_out": heldout_prompts,
        "samples": sum(len(group["outputs"]) for group in groups),
        "kept": len(found.rows),
        "prompts_kept": len({row["task"] for row in found.rows}),
        "rejected": found.rejected,
        "mean_pass_rate": round(sum(rates) / len(rates), 6) if rates else None,
        "pass_rates": histogram(rates),
        "tokens_kept": quantiles(kept),
        "tokens_sampled": quantiles([output["tokens"] for group in groups for output in group["outputs"]]),
        "settings": {
            name: getattr(config, name)
            for name in (
                "samples", "temperature", "top_p", "max_new_tokens", "threshold", "select", "per_prompt", "max_tokens",
                "similarity", "min_pass_rate", "max_pass_rate", "bucket_share",
            )
        },
    }  # fmt: skip


def card(facts: Mapping[str, Any]) -> str:
    """README.md of the accepted answers."""

    def table(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
        return [(name, "" if value is None else value) for name, value in values.items()]

    sections: dict[str, Section] = {
        "What this is": "Answers that a policy gave to training prompts, kept where a grader accepts them. One row of "
        "`accepted.jsonl` is a conversation (`messages`), its `task`, `score`, `pass_rate` and `tokens`; "
        "`samples.jsonl` holds every answer sampled.",
        "Counts": [
            ("prompts sampled", facts["prompts"]),
            ("prompts left out as held-out text", facts["prompts_held_out"]),
            ("answers sampled", facts["samples"]),
            ("answers kept", facts["kept"]),
            ("prompts with a kept answer", facts["prompts_kept"]),
        ],
        "Why answers were left out": table(facts["rejected"]),
        "Prompts by pass rate": table(facts["pass_rates"]),
        "Tokens of kept answers": table(facts["tokens_kept"]),
        "Settings": table(facts["settings"]),
    }
    return dataset_card("Accepted answers", sections, {"size_categories": [size_category(facts["kept"])]})
