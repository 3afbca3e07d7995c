"""Supervised fine-tuning of a checkpoint directory on several sources of examples, in one call.

    found = fine_tune(start, {"data": items, "math": others}, {"data": 0.5, "math": 0.5}, config, ctx, "fine-tuning")

What every supervised method does once it has its examples: fit them into rows, mix them, load the policy, train on the
next token, save beside the tokenizer it came with. Not covered: making the examples (see `training.conversations`),
other objectives than the next token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loopline.model.language_model import LanguageModel
from loopline.store.context import Context
from loopline.training.config import TrainingConfig
from loopline.training.evaluations import Evaluations
from loopline.training.lengths import Item, fit, position_limit
from loopline.training.loop import train
from loopline.training.objectives import NextToken
from loopline.training.policy import load_policy, save_policy
from loopline.training.sources import SetSource

Watch = Callable[[LanguageModel], AbstractContextManager[Evaluations | None]]


@dataclass(frozen=True)
class FineTuned:
    """What came of it."""

    loss: float
    """Of the last step."""
    steps: int
    parameters: int
    """Of the whole model."""
    facts: dict[str, Any]
    """{"rows", "tokens", "steps", "sources": {name: {"rows", "share", reasons for rows left out}}}"""


def fine_tune(
    start: Path,
    items: Mapping[str, Sequence[Item]],
    shares: Mapping[str, float],
    config: TrainingConfig,
    ctx: Context,
    description: str,
    dynamic: bool = False,
    watch: Watch = lambda model: nullcontext(),
) -> FineTuned:
    """Train the checkpoint in `start` and write the result to `ctx.out`.

    `shares` gives each source its part of every step, in proportion; `watch` gives what measures the model while it is
    trained (see `evaluation.during`). Raises `UserError` for a source without examples
    and for a sequence that is too long, before the model is loaded.
    """
    limit = position_limit(start)
    kept, sources = {}, {}
    total = sum(shares.values())
    for name in (name for name in items if shares.get(name)):
        fitting, left_out = fit(items[name], config, limit)
        kept[name] = [example for item in fitting for example in item.examples]
        sources[name] = {"rows": len(fitting), "share": round(shares[name] / total, 6), **left_out}
    rows = sum(map(len, kept.values()))
    steps = config.steps_for(rows)
    source = SetSource(
        kept, shares, config.batch_size, config.longest(limit), config.rows_per_batch, ctx.seed_for("order")
    )
    model = load_policy(start, config.adapter, ctx.device)
    with watch(model) as evaluations:
        last = train(model, NextToken(dynamic), source, steps, config, ctx, description, evaluations=evaluations)
    save_policy(model, start, ctx.out)
    tokens = sum(len(example.tokens) for examples in kept.values() for example in examples)
    parameters = sum(item.numel() for item in model.parameters())
    return FineTuned(
        last["loss"], steps, parameters, {"rows": rows, "tokens": tokens, "steps": steps, "sources": sources}
    )
