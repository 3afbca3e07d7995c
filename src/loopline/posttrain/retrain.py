"""Retraining on traffic: the released policy, its users' rows and a replay of the training tasks.

Rows come scrubbed and labelled from the data stage's traffic pass. The result is a candidate; whether it replaces the
champion is the release gate's decision. Not covered: preference rows (they are counted, not trained on, below
a usable number), near-online RL.
"""

from __future__ import annotations

from collections.abc import Mapping

from loopline.base.errors import UserError
from loopline.base.files import read_jsonl
from loopline.chat.load import load_tokenizer
from loopline.posttrain.config import RetrainConfig
from loopline.store.artifact import Artifact
from loopline.store.context import Context
from loopline.tasks.task import load_tasks
from loopline.training.conversations import message_example, task_examples
from loopline.training.finetune import fine_tune


def retrain(config: RetrainConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """Fine-tune the released model on traffic rows beside a replay of the training tasks."""
    champion = inputs["policy"] / "model"
    tokenizer = load_tokenizer(champion)
    rows = read_jsonl(inputs["traffic"] / "sft.jsonl")
    if not rows:
        raise UserError(
            "The traffic held no usable row: none had consent and positive or corrected feedback",
            "collect more feedback before running the traffic loop",
        )
    wanted = [name for name, share in config.replay.items() if share > 0]
    tasks = load_tasks(inputs["tasks"] / "train.jsonl", sets=wanted)
    examples = task_examples(tokenizer, tasks, config.styles, ctx.rng("styles"))
    examples["traffic"] = [
        message_example(tokenizer, row["messages"], f"sft.jsonl row {number}") for number, row in enumerate(rows)
    ]
    total = sum(config.replay[name] for name in wanted)
    shares = {name: (1 - config.traffic_share) * config.replay[name] / total for name in wanted}
    shares["traffic"] = config.traffic_share
    last, _ = fine_tune(champion, examples, shares, config, ctx, "retraining on traffic")
    ctx.metrics.summary(loss=last["loss"], traffic_rows=len(rows))
