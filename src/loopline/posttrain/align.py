"""Alignment by preferences over the policy's own answers.

    - align: {tasks: ["tag:must_refuse", "tag:must_answer"], retain: ["tag:reasoning"]}

The policy answers training tasks; their graders say which answers show the wanted behaviour. An answer that does
is preferred to one that does not, and training on the pairs is that of `preference`, with every loss of pairs. Pairs of
a right and a wrong answer from the sets under `retain` keep what those test in place. The pairs go to
`preferences.jsonl`, where anyone can read what was preferred to what; where the tasks bring a constitution, each pair
quotes the principle its task was written for. Nothing reads that text: the graders judge, so this is not constitutional
AI. Not covered: judges that read a constitution, learned preference models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from loopline.attempts.ask import ask
from loopline.base.errors import UserError
from loopline.base.files import read_json, write_json, write_jsonl
from loopline.chat.load import load_tokenizer
from loopline.grading.graders import GraderSet
from loopline.inference.engine import Sampling, TorchEngine
from loopline.posttrain.data import HeldoutTasks, chosen_sets
from loopline.posttrain.grpo import refuse_bad_graders
from loopline.posttrain.pairs import pair_items
from loopline.posttrain.preference import learn
from loopline.posttrain.preference_config import AlignConfig
from loopline.posttrain.preferences import build_pairs, pair_of
from loopline.store.artifact import Artifact
from loopline.store.context import Context
from loopline.tasks.rows import Pair
from loopline.tasks.sets import TAG
from loopline.tasks.task import Task, load_tasks


def align(config: AlignConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """Sample, grade, pair, and train on the preferences."""
    conduct, retain = choose_tasks(config, inputs, ctx.rng("tasks"))
    refuse_bad_graders(inputs["graders"], {task.grader for task in [*conduct, *retain]})
    start = inputs["policy"].path
    engine = TorchEngine.from_checkpoint(start, device=ctx.device)
    sampling = Sampling(config.max_new_tokens, temperature=config.temperature, n=config.samples)
    tasks = [*conduct, *retain]
    with (
        GraderSet.from_json(inputs["graders"] / "graders.json", workers=ctx.threads) as graders,
        ctx.progress("sampling answers", len(tasks)) as bar,
    ):
        state, seed = ctx.state / "answers", ctx.seed_for("samples")
        groups = ask(engine, tasks, sampling, graders=graders, seed=seed, state=state, progress=bar.advance)
    kept = {task.id for task in retain}
    rows, counts = build_pairs(groups, kept, config.written, principles(inputs["tasks"]))
    if len(rows) < config.batch_size:
        raise UserError(
            f"Only {len(rows)} preference pairs came out of {len(tasks)} prompts ({counts}), fewer than batch_size",
            "raise prompts or samples; when all answers show the conduct wanted, leave alignment out",
        )
    write_jsonl(ctx.out / "preferences.jsonl", rows)
    write_json(ctx.out / "preferences.json", counts)
    items = pair_items([cast(Pair, pair_of(row)) for row in rows], load_tokenizer(start))
    learn(items, start, config, inputs, ctx, {"read": {"pairs": counts}})


def choose_tasks(
    config: AlignConfig, inputs: Mapping[str, Artifact], rng: np.random.Generator
) -> tuple[list[Task], list[Task]]:
    """Training tasks that show conduct, and those that keep other abilities, the latter in equal parts per set.

    A tag selects the rows that have it. Tasks that hold held-out text are left out.
    """
    heldout = HeldoutTasks(inputs["tasks"])

    def members(choice: Sequence[str]) -> dict[str, list[Task]]:
        sets = chosen_sets(inputs, choice)
        tags = {word.removeprefix(TAG) for word in choice if word.startswith(TAG)}
        tasks = [
            task
            for task in load_tasks(inputs["tasks"] / "train.jsonl", sets=list(sets))
            if (task.task_set in choice or tags & set(task.tags)) and not heldout.holds(task.prompt)
        ]
        return {name: [task for task in tasks if task.task_set == name] for name in sorted(sets)}

    shown = [task for tasks in members(config.tasks).values() for task in tasks]
    conduct = [shown[i] for i in rng.permutation(len(shown))[: config.prompts]]
    known = {task.id for task in shown}
    retained: list[Task] = []
    if config.retain and config.retain_prompts:
        others = members(config.retain)
        for tasks in others.values():
            free = [task for task in tasks if task.id not in known]
            retained += [free[i] for i in rng.permutation(len(free))[: config.retain_prompts // len(others)]]
    return conduct, retained


def principles(tasks: Artifact) -> dict[str, str]:
    """The principles that the tasks were written for, by id, where they bring a constitution."""
    file = tasks / "constitution.json"
    found: list[dict[str, Any]] = read_json(file) if file.exists() else []
    return {rule["id"]: rule["text"] for rule in found}
