"""Alignment: preference pairs from a small written constitution, then DPO.

The pairs go to `preferences.jsonl`, where anyone can read what was preferred to what and by which principle. Not
covered: a learned preference model, online preference optimization.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loopline.base.errors import UserError
from loopline.base.files import read_json, read_jsonl, write_json, write_jsonl
from loopline.chat.load import load_tokenizer
from loopline.grading.graders import GraderSet
from loopline.inference.engine import Sampling, TorchEngine
from loopline.model.checkpoint import load_model, save_checkpoint
from loopline.posttrain.config import REASONING, AlignConfig
from loopline.posttrain.grpo import refuse_bad_graders
from loopline.posttrain.pairs import pair_items
from loopline.posttrain.preference import with_reference
from loopline.posttrain.preferences import build_pairs
from loopline.store.artifact import Artifact
from loopline.store.context import Context
from loopline.tasks.rows import Pair
from loopline.tasks.task import Task, load_tasks
from loopline.training.config import TrainingConfig
from loopline.training.loop import train
from loopline.training.objectives import DPO
from loopline.training.sources import PairSource


def choose_tasks(tasks: Sequence[Task], config: AlignConfig, rng: Any) -> list[Task]:
    """Safety requests, and reasoning tasks in equal parts per task set, drawn without repetition."""
    safety = [task for task in tasks if task.task_set == "safety"]
    chosen = [safety[i] for i in rng.permutation(len(safety))[: config.prompts]]
    per_set = config.retain_prompts // len(REASONING)
    for task_set in sorted(REASONING):
        members = [task for task in tasks if task.task_set == task_set]
        chosen += [members[i] for i in rng.permutation(len(members))[:per_set]]
    return chosen


def pair_of(row: Mapping[str, Any]) -> Pair:
    """A row of preferences.jsonl as training reads it."""
    return {
        "id": row["task"],
        "prompt": row["input"]["messages"],
        "chosen": row["preferred_output"],
        "rejected": row["non_preferred_output"],
    }


def align(config: AlignConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """Sample, judge by the constitution, and train on the preferences."""
    tasks = load_tasks(inputs["tasks"] / "train.jsonl", sets=["safety", *REASONING])
    chosen = choose_tasks(tasks, config, ctx.rng("tasks"))
    refuse_bad_graders(inputs["graders"], {task.grader for task in chosen})
    start = inputs["policy"].path
    model, tokenizer = load_model(start, ctx.device).eval(), load_tokenizer(start)
    saved = ctx.state / "preferences.jsonl"
    counts_file = ctx.state / "preferences.json"
    if not counts_file.exists():
        constitution = {rule["id"]: rule for rule in read_json(inputs["tasks"] / "constitution.json")}
        sampling = Sampling(config.max_new_tokens, temperature=config.temperature, n=config.samples)
        with GraderSet.from_json(inputs["graders"] / "graders.json") as graders:
            engine = TorchEngine(model, tokenizer)
            rows, counts = build_pairs(engine, chosen, graders, constitution, sampling, ctx.seed_for("samples"))
        write_jsonl(saved, rows)
        write_json(counts_file, counts)
    rows, counts = read_jsonl(saved), read_json(counts_file)
    if len(rows) < config.pairs_per_step:
        raise UserError(
            f"Only {len(rows)} preference pairs came out of {len(chosen)} prompts ({counts})",
            "raise align.prompts or align.samples; when all answers already follow, leave alignment out",
        )
    groups = [item.examples for item in pair_items([pair_of(row) for row in rows], tokenizer)]
    pairs = [(chosen, rejected) for chosen, rejected in with_reference(model, groups, ctx)]
    source = PairSource(pairs, config.pairs_per_step, ctx.seed_for("order"))
    settings = TrainingConfig(optimizer=config.optimizer, schedule=config.schedule, runtime=config.runtime)
    last = train(model, DPO(config.beta, config.sft_weight), source, config.steps, settings, ctx, "alignment")
    save_checkpoint(model, start, ctx.out)
    write_jsonl(ctx.out / "preferences.jsonl", rows)
    write_json(ctx.out / "preferences.json", counts)
    ctx.metrics.summary(loss=last["loss"], accuracy=last["accuracy"], pairs=len(rows))
