"""Rejection sampling and distillation: sample, grade, select, write a data set with its card, train on it.

    - repeat: {times: 2, line: [{reject: {tasks: {math: 1}, samples: 16}}]}
    - reject: {from_rollouts: true}                      # what reinforcement learning sampled anyway
    - distill: {student: ../small, tasks: {math: 1}}     # a teacher's answers, another start

Both are one procedure: who answers and who is trained differ. Writes rows.jsonl, accepted.json and README.md beside the
checkpoint, and samples.jsonl where it sampled. Not covered: environments with tools (see `agents`), learning from a
teacher's probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from loopline.attempts.ask import ask
from loopline.attempts.attempt import Attempt
from loopline.base.errors import UserError
from loopline.base.files import read_jsonl, write_json, write_jsonl, write_text
from loopline.chat.load import load_tokenizer
from loopline.evaluation.during import development
from loopline.grading.graders import GraderSet
from loopline.inference.engine import Sampling, TorchEngine
from loopline.posttrain.card import Section, dataset_card, quantiles, size_category
from loopline.posttrain.data import HeldoutTasks, checkpoint_of, chosen_sets, demonstrations
from loopline.posttrain.grpo import refuse_bad_graders
from loopline.posttrain.reject_config import DistillConfig, RejectConfig
from loopline.posttrain.scoring import score_conversations
from loopline.posttrain.selection import Accepted, Group, Selection, group_of, histogram, passes, rollout_groups, select
from loopline.store.artifact import Artifact
from loopline.store.context import Context
from loopline.tasks.task import Task, load_tasks
from loopline.training.batch import Example
from loopline.training.conversations import conversation_example, sets_of
from loopline.training.finetune import fine_tune
from loopline.training.lengths import Item, position_limit
from loopline.training.sources import set_indices

ACCEPTED = "accepted"
"""What the accepted answers are called among the sources of a step."""


def reject(config: RejectConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """Sample "policy" on "tasks", and train "start" (without one, the policy) on what "graders" let pass.

    "reward_model" ranks answers for `select: best`. Raises `UserError` when too few answers pass.
    """
    train_on_answers(config, inputs["policy"], inputs.get("start", inputs["policy"]), inputs, ctx)


def distill(config: DistillConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """Sample "teacher" on "tasks", and train "student" on what "graders" let pass."""
    if "student" not in inputs:
        raise UserError(
            "There is no student to train", "set `student` to a checkpoint directory, or inputs: {student: NODE}"
        )
    train_on_answers(config, inputs["teacher"], inputs["student"], inputs, ctx)


def train_on_answers(
    config: RejectConfig, answerer: Artifact, trained: Artifact, inputs: Mapping[str, Artifact], ctx: Context
) -> None:
    """Train one checkpoint on the accepted answers of another, or of itself."""
    heldout = HeldoutTasks(inputs["tasks"])
    early = 0
    if config.from_rollouts:
        groups, early = rollout_groups(read_jsonl(answerer / "rollouts.jsonl"), config.from_step)
        held_out = 0
    else:
        tasks = prompts_of(config, inputs, ctx)
        refuse_bad_graders(inputs["graders"], {task.grader for task in tasks})
        clean = [task for task in tasks if not heldout.holds(task.prompt)]
        held_out = len(tasks) - len(clean)
        if not clean:
            raise UserError(
                "Every prompt holds held-out text", "give training prompts that differ from the held-out part"
            )
        attempts = sample(clean, config, answerer.path, inputs, ctx)
        groups = [group_of(group) for group in attempts]
        write_jsonl(ctx.out / "samples.jsonl", (attempt.to_row() for group in attempts for attempt in group))
    if "reward_model" in inputs:
        groups = rank(groups, inputs["reward_model"].path, config, ctx)
    start = checkpoint_of(trained).path
    found = select(groups, config, heldout, ctx.rng("select"), position_limit(start))
    facts = describe(found, groups, config, held_out, early)
    if len(found.kept) < config.minimum:
        reasons = ", ".join(f"{count} {reason}" for reason, count in facts["rejected"].items() if count)
        raise UserError(
            f"Only {len(found.kept)} answers to {len(groups)} prompts were accepted, fewer than minimum "
            f"({config.minimum}); the others: {reasons or 'none'}",
            "sample more answers (samples), train the policy first, use easier prompts, or lower minimum",
        )
    write_jsonl(ctx.out / "rows.jsonl", (one.to_row() for one in found.kept))
    write_json(ctx.out / "accepted.json", facts)
    write_text(ctx.out / "README.md", card(facts))
    items = {ACCEPTED: items_of(found.kept, answerer.path, start)}
    written, sets, left_out = demonstrations(load_tokenizer(start), inputs, config.replay, heldout, ctx.rng("styles"))
    whole = sum(sets.values()) or 1.0
    shares = {ACCEPTED: config.share, **{name: (1 - config.share) * part / whole for name, part in sets.items()}}
    watch = partial(
        development, config.evaluate, start=start, inputs=inputs, ctx=ctx, max_new_tokens=config.max_new_tokens
    )
    done = fine_tune(start, {**items, **written}, shares, config, ctx, "training on accepted answers", watch=watch)
    write_json(ctx.out / "training.json", {**done.facts, "read": {"replay": {"left_out": {"held-out text": left_out}}}})
    ctx.metrics.summary(
        loss=done.loss,
        accepted=len(found.kept),
        mean_pass_rate=facts["mean_pass_rate"],
        steps=done.steps,
        parameters=done.parameters,
    )


def prompts_of(config: RejectConfig, inputs: Mapping[str, Artifact], ctx: Context) -> list[Task]:
    """The training tasks to answer: of `tasks` in their shares, else any, without repetition."""
    if not config.tasks:
        tasks = load_tasks(inputs["tasks"] / "train.jsonl")
        order = sorted(ctx.rng("prompts").permutation(len(tasks))[: config.prompts])
        return [tasks[number] for number in order]
    shares = chosen_sets(inputs, config.tasks)
    members = sets_of(load_tasks(inputs["tasks"] / "train.jsonl", sets=list(shares)), shares)
    sizes = {name: len(found) for name, found in members.items()}
    whole = sum(shares.values())
    most = int(min(sizes[name] * whole / share for name, share in shares.items()))
    count = max(1, min(config.prompts or most, most))
    return [members[name][i] for name, i in set_indices(sizes, shares, count, 0, ctx.seed)]


def sample(
    tasks: Sequence[Task], config: RejectConfig, policy: Path, inputs: Mapping[str, Artifact], ctx: Context
) -> list[list[Attempt]]:
    """Graded answers of a checkpoint; saved as they come, so that a killed run goes on."""
    engine = TorchEngine.from_checkpoint(policy, device=ctx.device)
    sampling = Sampling(config.max_new_tokens, temperature=config.temperature, top_p=config.top_p, n=config.samples)
    with (
        GraderSet.from_json(inputs["graders"] / "graders.json", workers=ctx.threads) as graders,
        ctx.progress("sampling answers", len(tasks)) as bar,
    ):
        return ask(
            engine, tasks, sampling, graders=graders, seed=ctx.seed, state=ctx.state / "answers", progress=bar.advance
        )


def items_of(kept: Sequence[Accepted], policy: Path, start: Path) -> list[Item]:
    """Accepted answers as sequences: the ids that were sampled where the start reads the same ones, else the text."""
    files = [path / "tokenizer.json" for path in (policy, start)]
    same = policy == start or files[0].read_bytes() == files[1].read_bytes()
    tokenizer = load_tokenizer(start)
    items: list[Item] = []
    for one in kept:
        prompt, ids = one.answer.prompt, one.answer.ids
        if same and prompt and ids:
            example = Example([*prompt, *ids], [0.0] * len(prompt) + [1.0] * len(ids))
        else:
            row = one.to_row()
            tools = row.get("tools", ())
            example = conversation_example(tokenizer, row["messages"], row["id"], row["given"], tools=tools)
        items.append(Item(one.group.task, (example,)))
    return items


def rank(groups: Sequence[Group], model: Path, config: RejectConfig, ctx: Context) -> list[Group]:
    """The groups, every passing answer with a "rank": its score by the reward model."""
    passing = [(group, answer) for group in groups for answer in group.answers if passes(answer, config)]
    with ctx.progress("ranking answers", len(passing)) as bar:
        talks = [[*group.messages, {"role": "assistant", "content": answer.text}] for group, answer in passing]
        scores = iter(score_conversations(model, talks, ctx.device, bar.advance))
    return [
        replace(
            group,
            answers=tuple(
                replace(answer, rank=round(next(scores), 6)) if passes(answer, config) else answer
                for answer in group.answers
            ),
        )
        for group in groups
    ]


def describe(
    found: Selection, groups: Sequence[Group], config: RejectConfig, heldout_prompts: int, early: int
) -> dict[str, Any]:
    """Counts, reasons, the histogram of pass rates, and lengths."""
    rates = found.pass_rates
    return {
        "source": "rollouts" if config.from_rollouts else "samples",
        "prompts": len(groups),
        "prompts_held_out": heldout_prompts,
        "samples": early + sum(len(group.answers) for group in groups),
        "kept": len(found.kept),
        "prompts_kept": len({one.group.task for one in found.kept}),
        "rejected": {**({"too early": early} if config.from_rollouts else {}), **found.rejected},
        "mean_pass_rate": round(sum(rates) / len(rates), 6) if rates else None,
        "pass_rates": histogram(rates),
        "tokens_kept": quantiles([one.answer.tokens for one in found.kept]),
        "tokens_sampled": quantiles([answer.tokens for group in groups for answer in group.answers]),
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
        "`rows.jsonl` is a conversation (`messages`), its `task`, `score`, `pass_rate` and `tokens`; "
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
