"""Rejection-sampling fine-tuning: the RL rollouts that passed become supervised data.

Kept are correct answers, distinct, shortest first, with a cap on prompts that every sample solved. General tasks are
mixed in, so abilities that RL did not exercise stay. The kept rows are written to `accepted.jsonl` with a card of what
was rejected and why. Not covered: fresh sampling beyond the RL rollouts, iterating with alignment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from loopline.base.errors import UserError
from loopline.base.files import read_jsonl, write_json, write_jsonl
from loopline.chat.load import load_tokenizer
from loopline.posttrain.config import RFTConfig
from loopline.store.artifact import Artifact
from loopline.store.context import Context
from loopline.tasks.task import load_tasks
from loopline.training.conversations import conversation_example, task_examples
from loopline.training.finetune import fine_tune
from loopline.training.lengths import Item


def accept(
    rollouts: Sequence[dict[str, Any]], config: RFTConfig, rng: np.random.Generator
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The rows to train on, and how many samples each rule rejected."""
    rejected = {"too early": 0, "wrong": 0, "could not be graded": 0, "repeated": 0, "longer": 0, "too easy": 0}
    last = max(row["step"] for row in rollouts) + 1
    by_task: dict[str, list[dict[str, Any]]] = {}
    for row in rollouts:
        if row["step"] < config.from_step * last:
            rejected["too early"] += len(row["outputs"])
        else:
            # A prompt may have come up at several steps; its answers compete with each other.
            by_task.setdefault(row["task"], []).append(row)
    kept: list[dict[str, Any]] = []
    for task, rows in by_task.items():
        outputs = [output for row in rows for output in row["outputs"]]
        rejected["could not be graded"] += sum(output["score"] is None for output in outputs)
        correct = [output for output in outputs if output["score"] == 1 and output["finish"] == "stop"]
        graded = sum(output["score"] is not None for output in outputs)
        rejected["wrong"] += graded - len(correct)
        distinct: dict[str, dict[str, Any]] = {}
        for output in sorted(correct, key=lambda output: (output["tokens"], output["text"])):
            if output["text"] in distinct:
                rejected["repeated"] += 1
            else:
                distinct[output["text"]] = output
        for number, text in enumerate(distinct):
            if number >= config.per_prompt:
                rejected["longer"] += 1
                continue
            prompt = rows[0].get("messages", [{"role": "user", "content": rows[0]["prompt"]}])
            kept.append(
                {
                    "task": task,
                    "task_set": rows[0]["task_set"],
                    "pass_rate": len(correct) / max(graded, 1),
                    "messages": [*prompt, {"role": "assistant", "content": text}],
                }
            )
    easy = [number for number, row in enumerate(kept) if row["pass_rate"] == 1]
    hard = len(kept) - len(easy)
    allowed = len(easy) if config.solved_share == 1 else int(hard * config.solved_share / (1 - config.solved_share))
    if len(easy) > allowed:
        dropped = set(rng.permutation(easy)[allowed:].tolist())
        rejected["too easy"] = len(dropped)
        kept = [row for number, row in enumerate(kept) if number not in dropped]
    return kept, rejected


def rft(config: RFTConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """Fine-tune the RL policy on its own accepted rollouts and a share of general tasks."""
    policy = inputs["policy"].path
    tokenizer = load_tokenizer(policy)
    kept, rejected = accept(read_jsonl(inputs["policy"] / "rollouts.jsonl"), config, ctx.rng("accept"))
    if len(kept) < config.minimum:
        raise UserError(
            f"Only {len(kept)} rollouts were accepted, fewer than rft.minimum ({config.minimum})",
            "train RL longer, lower rft.from_step, or lower rft.minimum",
        )
    write_jsonl(ctx.out / "accepted.jsonl", kept)
    write_json(ctx.out / "accepted.json", {"kept": len(kept), "rejected": rejected, "source": "rollouts.jsonl"})
    general = [name for name, share in config.general.items() if share > 0]
    tasks = load_tasks(inputs["tasks"] / "train.jsonl", sets=general)
    examples = task_examples(tokenizer, tasks, {}, ctx.rng("styles"), config.limits)
    examples["rollouts"] = [
        Item(row["task"], (conversation_example(tokenizer, row["messages"], row["task"]),)) for row in kept
    ]
    total = sum(config.general[name] for name in general) or 1.0
    shares = {name: (1 - config.rollout_share) * config.general[name] / total for name in general}
    shares["rollouts"] = config.rollout_share
    done = fine_tune(policy, examples, shares, config, ctx, "rejection-sampling fine-tuning")
    ctx.metrics.summary(loss=done.loss, accepted=len(kept))
