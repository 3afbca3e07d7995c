"""Supervised fine-tuning of any checkpoint.

    - sft: {data: chats.jsonl, read: {columns: {prompt: question, completion: answer}}}
    - sft: {tasks: {math: 0.7, code: 0.3}, styles: {think: 1, direct: 0}, limits: {math: 200}}
    - {sft: {shares: {rows: 0.5, tasks: 0.5}, tasks: {math: 1}}, from: release, inputs: {rows: traffic_data}}

Trains on conversations of a file, on rows that an earlier stage wrote, and on written answers of task sets, in fixed
parts of every step. Rows with text of a development or held-out task are left out and counted (`training.json`). Not
covered: preferences (see `preference`), answers the policy samples itself (see `reject`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from loopline.base.files import write_json
from loopline.chat.load import load_tokenizer
from loopline.evaluation.during import development
from loopline.posttrain.data import checkpoint_of, demonstrations, heldout_of, mix, read_sources
from loopline.posttrain.sft_config import SFTConfig
from loopline.store.artifact import Artifact
from loopline.store.context import Context
from loopline.training.conversations import conversation_example
from loopline.training.finetune import fine_tune
from loopline.training.lengths import Item


def sft(config: SFTConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """Fine-tune "policy" on the file "data", the artifacts "rows" and demonstrations of "tasks"."""
    policy = checkpoint_of(inputs["policy"]).path
    tokenizer = load_tokenizer(policy)
    heldout = heldout_of(inputs)
    rows, facts = read_sources(inputs, "conversations", config.read, heldout, ctx)
    items: dict[str, list[Item]] = {}
    with ctx.progress("tokenizing", sum(map(len, rows.values()))) as bar:
        for source, members in rows.items():
            found = items[source] = []
            for row in members:
                tools = row.get("tools", ())
                example = conversation_example(
                    tokenizer, row["messages"], row["id"], row["given"], config.learn, tools, config.allow
                )
                found.append(Item(row["id"], (example,)))
                bar.advance()
    written, sets, left_out = demonstrations(tokenizer, inputs, config, heldout, ctx.rng("styles"))
    if left_out:
        facts["tasks"] = {"left_out": {"held-out text": left_out}}
    items |= written
    shares = mix(items, sets, config.shares)
    watch = partial(development, config.evaluate, start=policy, inputs=inputs, ctx=ctx)
    done = fine_tune(policy, items, shares, config, ctx, "fine-tuning", config.dynamic, watch)
    write_json(ctx.out / "training.json", {**done.facts, "read": facts})
    ctx.metrics.summary(loss=done.loss, rows=done.facts["rows"], steps=done.steps)
