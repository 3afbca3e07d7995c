"""Cold-start supervised fine-tuning.

A small, clean set of answers fixes the format and gives the policy several behaviours of different worth, thinking and
answering at once, among which reinforcement learning then chooses. Not covered: packing across conversations with
attention between them (there is none), adapters.
"""

from __future__ import annotations

from collections.abc import Mapping

from loopline.chat.load import load_tokenizer
from loopline.posttrain.config import SFTConfig
from loopline.store.artifact import Artifact
from loopline.store.context import Context
from loopline.tasks.task import load_tasks
from loopline.training.conversations import task_examples
from loopline.training.finetune import fine_tune


def sft(config: SFTConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """Fine-tune a base on the training tasks' written answers."""
    base = inputs["base"].path
    tokenizer = load_tokenizer(base)
    wanted = [name for name, share in config.shares.items() if share > 0]
    tasks = load_tasks(inputs["tasks"] / "train.jsonl", sets=wanted)
    examples = task_examples(tokenizer, tasks, config.styles, ctx.rng("styles"), config.limits)
    last, _ = fine_tune(base, examples, config.shares, config, ctx, "cold-start fine-tuning")
    ctx.metrics.summary(loss=last["loss"], examples=sum(map(len, examples.values())))
