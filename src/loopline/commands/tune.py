"""Supervised fine-tuning on a user's rows.

    loopline sft --model DIR --data train.jsonl --out runs/mine

Not covered: several files with shares of their own.
"""

from __future__ import annotations

from collections.abc import Mapping

from loopline.base.files import read_jsonl, write_json
from loopline.chat.load import load_tokenizer
from loopline.commands.config import FineTuneConfig
from loopline.commands.lengths import fit, room, steps_of
from loopline.store.artifact import Artifact
from loopline.store.context import Context
from loopline.training.conversations import conversation_example
from loopline.training.finetune import fine_tune, position_limit


def sft(config: FineTuneConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """Train the checkpoint "model" on the conversations of "data"."""
    model = inputs["model"].path
    tokenizer = load_tokenizer(model)
    rows = read_jsonl(inputs["data"] / "rows.jsonl")
    limit = room(model, config)
    with ctx.progress("tokenizing", len(rows)) as bar:
        examples = []
        for row in rows:
            example = conversation_example(tokenizer, row["messages"], row["given"], config.learn, row["id"])
            examples.append((example,))
            bar.advance()
    kept, counts = fit(examples, [row["id"] for row in rows], limit, config, position_limit(model))
    steps = steps_of(config, len(kept), config.examples_per_step)
    tokens = sum(len(example.tokens) for (example,) in kept)
    write_json(ctx.out / "training.json", {"rows": len(kept), "tokens": tokens, "steps": steps, **counts})
    found = {"rows": [example for (example,) in kept]}
    shares = {"rows": 1.0}
    last, _ = fine_tune(model, found, shares, config, ctx, "fine-tuning", steps, limit, config.adapter, config.divide)
    ctx.metrics.summary(loss=last["loss"], rows=len(kept), steps=steps)
