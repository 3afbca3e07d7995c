"""Supervised fine-tuning of a checkpoint directory on examples of several families, in one call.

    last, model = fine_tune(start, examples, shares, config, ctx, "cold-start fine-tuning")

What every supervised stage does once it has its examples: mix them, load the policy, train on the next token, save
beside the tokenizer it came with. Not covered: making the examples (see `training.conversations`), other objectives
than the next token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from loopline.base.files import read_json
from loopline.model.adapter_config import LoRAConfig
from loopline.model.language_model import LanguageModel
from loopline.store.context import Context
from loopline.training.batch import Example
from loopline.training.config import Divide, OptimizerConfig, ScheduleConfig, TrainConfig, TrainRuntime
from loopline.training.loop import train
from loopline.training.objectives import NextToken
from loopline.training.policy import load_policy, save_policy
from loopline.training.sources import FamilySource


class FineTuning(Protocol):
    """The settings a supervised stage has in common with every other."""

    @property
    def steps(self) -> int | None: ...
    @property
    def examples_per_step(self) -> int: ...
    @property
    def sequence_length(self) -> int: ...
    @property
    def rows_per_batch(self) -> int: ...
    @property
    def optimizer(self) -> OptimizerConfig: ...
    @property
    def schedule(self) -> ScheduleConfig: ...
    @property
    def runtime(self) -> TrainRuntime: ...


def position_limit(model: Path) -> int | None:
    """The longest sequence that a checkpoint's config allows, in tokens; None when it does not say."""
    limit = read_json(model / "config.json").get("max_position_embeddings")
    return int(limit) if limit else None


def fine_tune(
    start: Path,
    examples: Mapping[str, Sequence[Example]],
    shares: Mapping[str, float],
    config: FineTuning,
    ctx: Context,
    description: str,
    steps: int | None = None,
    row_length: int | None = None,
    adapter: LoRAConfig | None = None,
    divide: Divide = "operations",
) -> tuple[dict[str, float], LanguageModel]:
    """Train the checkpoint in `start` and write the result to `ctx.out`; returns the last step's metrics and the model.

    `shares` gives each family its part of every step; `steps` and `row_length` go before the settings of that name,
    for stages that work them out; with `adapter` only that is trained; `divide` is `TrainConfig`'s. Raises `UserError`
    for a family without examples and for an example longer than a row, before the model is loaded.
    """
    count = steps or config.steps
    if count is None:
        raise ValueError("fine_tune needs a number of steps, from the settings or by itself")
    source = FamilySource(
        examples,
        shares,
        config.examples_per_step,
        row_length or config.sequence_length,
        config.rows_per_batch,
        ctx.seed_for("order"),
    )
    model = load_policy(start, adapter, ctx.device)
    settings = TrainConfig(optimizer=config.optimizer, schedule=config.schedule, runtime=config.runtime, divide=divide)
    last = train(model, NextToken(), source, count, settings, ctx, description)
    save_policy(model, start, ctx.out)
    return last, model
