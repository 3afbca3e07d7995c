"""Stage 4, pretraining: token shards and a plan in, a base checkpoint out.

    loopline run laptop --until pretrain

`pretrain` trains from scratch what the plan chose, or its smaller student. `continue_pretraining` trains a base further
under a given mixture; the loop from offline benchmarks runs it twice, with the new mixture and with the old one as
control. Loss curves go to `log/metrics.jsonl`; bits per byte are measured by the evaluation stage. Not covered:
several devices.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from loopline.base.files import read_json
from loopline.model.checkpoint import load_model, save_checkpoint
from loopline.model.config import ModelConfig
from loopline.model.decoder import Decoder
from loopline.pretrain.config import ContinueConfig, PretrainConfig
from loopline.store.artifact import Artifact
from loopline.store.context import Context
from loopline.training.config import OptimizerConfig, ScheduleConfig, TrainingConfig
from loopline.training.loop import train
from loopline.training.objectives import NextToken
from loopline.training.shards import ShardSet
from loopline.training.sources import ShardSource


def pretrain(config: PretrainConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """Train the planned decoder from scratch."""
    plan = read_json(inputs["plan"] / "plan.json")
    shape = ModelConfig.model_validate(plan[config.shape])
    shards = ShardSet(inputs["data"].path)
    shards.check_vocabulary(shape.vocab_size)
    model = Decoder(shape).initialize(torch.Generator().manual_seed(ctx.seed_for("weights"))).to(ctx.device)
    source = ShardSource(shards, plan["batch_tokens"], plan["sequence_length"], ctx.seed_for("windows"), None)
    settings = TrainingConfig(
        optimizer=OptimizerConfig(
            kind=config.optimizer,
            learning_rate=plan["learning_rate"],
            matrix_learning_rate=plan["matrix_learning_rate"],
            weight_decay=config.weight_decay,
        ),
        schedule=ScheduleConfig.model_validate(plan["schedule"]),
        precision=config.precision,
        runtime=config.runtime,
    )
    steps = config.steps or plan["steps"]
    last = train(model, NextToken(), source, steps, settings, ctx, "pretraining")
    save_checkpoint(model, inputs["data"] / "tokenizer", ctx.out)
    tokens = steps * plan["batch_tokens"] if config.steps else plan["tokens"]
    ctx.metrics.summary(parameters=shape.parameters(), tokens=tokens, loss=last["loss"])


def continue_pretraining(config: ContinueConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """Train a base further under one side of mixture.json."""
    plan = read_json(inputs["plan"] / "plan.json")
    mixture = read_json(inputs["mixture"] / "mixture.json")
    side = config.mixture
    model = load_model(inputs["base"].path, ctx.device)
    shards = ShardSet(inputs["data"].path)
    shards.check_vocabulary(model.config.vocab_size)
    steps = max(1, config.tokens // plan["batch_tokens"])
    # Both runs walk the same windows of each source, so they differ in the mixture alone.
    source = ShardSource(shards, plan["batch_tokens"], plan["sequence_length"], 2**31 - 1, mixture[side])
    settings = TrainingConfig(
        optimizer=OptimizerConfig(
            kind="muon",
            learning_rate=config.learning_rate,
            matrix_learning_rate=config.matrix_learning_rate,
            weight_decay=0.01,
        ),
        schedule=config.schedule,
        runtime=config.runtime,
    )
    last = train(model, NextToken(), source, steps, settings, ctx, f"pretraining ({side} mixture)")
    save_checkpoint(model, inputs["base"].path, ctx.out)
    ctx.metrics.summary(loss=last["loss"], tokens=steps * plan["batch_tokens"])
