"""From settings and the data's size to a finished plan, or a refusal that says what is impossible.

    plan = make_plan(config, 1.6e13, vocab_size=1024, train_tokens={"stories": 1_500_000}, weights={"stories": 1.0})

A pure function: no clock, no machine. `stage.plan` calls it and writes the result. Not covered: parallel layouts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loopline.base.errors import UserError
from loopline.model.config import ModelConfig
from loopline.plan import laws
from loopline.plan.config import PlanConfig

TOLERANCE = 0.1
"""How far the ratio of tokens to parameters may be from the one asked for."""


def make_plan(
    config: PlanConfig, flops: float, vocab_size: int, train_tokens: Mapping[str, int], weights: Mapping[str, float]
) -> dict[str, Any]:
    """The value of plan.json for a budget of `flops`.

    `train_tokens` and `weights` are by source. Raises `UserError` when nothing fits in memory, the budget does not buy
    one batch, or the data would be repeated too often.
    """
    allocation = choose(config, flops, vocab_size)
    model = allocation.model
    parameters = model.parameters()
    batch = batch_tokens(config, flops, allocation.tokens)
    steps = int(allocation.tokens // batch)
    if steps < 1:
        need = laws.training_flops(parameters, batch)
        raise UserError(
            f"A budget of {flops:.2g} FLOPs buys {allocation.tokens:,.0f} tokens for a model of {parameters:,} "
            f"parameters, less than one batch of {batch:,}",
            f"raise budget.flops above {need:.2g}, or lower batch_tokens or sequence_length",
        )
    tokens = steps * batch
    available = sum(train_tokens.values())
    if tokens > config.max_epochs * available:
        raise UserError(
            f"The plan needs {tokens:,} tokens and the data has {available:,}, which repeats it "
            f"{tokens / max(1, available):.1f} times where max_epochs allows {config.max_epochs:g}",
            "add data, lower the budget or over_training, or raise max_epochs",
        )
    reached = tokens / parameters / config.tokens_per_parameter
    bounds = bounded_by(config, flops, vocab_size)
    if not bounds and abs(reached / config.over_training - 1) > TOLERANCE:
        raise UserError(*_missed(config, flops, allocation, steps, reached))
    total = sum(weights.values()) or 1.0
    rate = config.learning_rate or min(config.max_learning_rate, laws.learning_rate_law(flops))
    return {
        "model": model.model_dump(),
        "parameters": parameters,
        "tokens": tokens,
        "tokens_per_parameter": round(tokens / parameters, 3),
        "chinchilla_multiple": round(reached, 4),
        "asked_multiple": config.over_training,
        "bounded_by": bounds,
        "sequence_length": config.sequence_length,
        "batch_tokens": batch,
        "steps": steps,
        "learning_rate": float(f"{rate:.3g}"),
        "matrix_learning_rate": config.matrix_learning_rate,
        "schedule": config.schedule.model_dump(),
        "flops": laws.training_flops(parameters, tokens),
        "budget": {"flops": flops, "given_in": "flops" if config.budget.flops is not None else "minutes"},
        "epochs": {
            source: round(tokens * weights.get(source, 0.0) / total / count, 3) if count else 0.0
            for source, count in sorted(train_tokens.items())
        },
        "memory": {
            "training_bytes": laws.training_bytes(model, config.sequence_length),
            "serving_bytes": laws.serving_bytes(model, config.serving.weight_bits, config.serving.concurrency),
        },
        "student": student_shape(config, model).model_dump(),
    }


def bounded_by(config: PlanConfig, flops: float, vocab_size: int) -> list[str]:
    """The bounds that keep the plan from the shape its budget and over-training ask for; empty when nothing does."""
    return problems(config, laws.nearest(_shapes(config, vocab_size), _target(config, flops)))


def _missed(config: PlanConfig, flops: float, found: laws.Allocation, steps: int, reached: float) -> tuple[str, str]:
    """Why the ratio of tokens to parameters is not what was asked for, and what to do."""
    asked, parameters = config.over_training, found.model.parameters()
    exact = found.tokens / parameters / config.tokens_per_parameter
    told = f"The plan reaches {reached:.3g} times tokens_per_parameter where over_training asks for {asked:g}: "
    if abs(exact / asked - 1) <= TOLERANCE:
        what = f"the budget buys {found.tokens:,.0f} tokens, {steps} whole batches"
        return told + what, "lower batch_tokens or sequence_length, or raise the budget"
    wanted = _target(config, flops)
    shapes = _shapes(config, found.model.vocab_size)
    end = (
        "smallest"
        if parameters == shapes[0].parameters()
        else "largest"
        if parameters == shapes[-1].parameters()
        else ""
    )
    what = f"it needs a model of {wanted:,.0f} parameters and the {end or 'nearest'} shape has {parameters:,}"
    return told + what, f"set over_training to {exact:.3g}, or change the budget or the vocabulary"


def choose(config: PlanConfig, flops: float, vocab_size: int) -> laws.Allocation:
    """The shape and tokens for a budget. Raises `UserError` when no shape fits the memory or serving bounds."""
    shapes = _shapes(config, vocab_size)
    found = laws.choose_shape(
        shapes, flops, config.tokens_per_parameter * config.over_training, lambda model: not problems(config, model)
    )
    if found is None:
        raise UserError(
            f"No model fits: the smallest shape has {shapes[0].parameters():,} parameters and "
            + " and ".join(problems(config, shapes[0])),
            "raise the bound, or shorten sequence_length or max_position_embeddings, or use a smaller vocabulary",
        )
    return found


def problems(config: PlanConfig, model: ModelConfig) -> list[str]:
    """Which bounds `model` breaks."""
    found = []
    serving, giga = config.serving, 1e9
    if serving.max_parameters is not None and model.parameters() > serving.max_parameters:
        found.append(f"serving.max_parameters is {serving.max_parameters:,}")
    served = laws.serving_bytes(model, serving.weight_bits, serving.concurrency)
    if serving.memory_gb is not None and served > serving.memory_gb * giga:
        found.append(f"needs {served / giga:.3g} GB in service where serving.memory_gb is {serving.memory_gb:g}")
    trained = laws.training_bytes(model, config.sequence_length)
    if config.device_memory_gb is not None and trained > config.device_memory_gb * giga:
        found.append(f"needs {trained / giga:.3g} GB to train where device_memory_gb is {config.device_memory_gb:g}")
    return found


def batch_tokens(config: PlanConfig, flops: float, tokens: float) -> int:
    """The batch asked for, or the law's, halved while it leaves fewer than `min_steps` steps."""
    if config.batch_tokens is not None:
        return config.batch_tokens
    batch = laws.round_batch(laws.batch_law(flops), config.sequence_length)
    while batch > config.sequence_length and tokens / batch < config.min_steps:
        batch //= 2
    return batch


def student_shape(config: PlanConfig, model: ModelConfig) -> ModelConfig:
    """The shape nearest to `student_share` of the model, always smaller than it."""
    least = laws.shape(32, 1, model.vocab_size, config.max_position_embeddings, config.qk_norm, 32)
    shapes = (least, *_shapes(config, model.vocab_size))
    smaller = [shape for shape in shapes if shape.parameters() < model.parameters()] or [least]
    return laws.nearest(smaller, config.student_share * model.parameters())


def _shapes(config: PlanConfig, vocab_size: int) -> tuple[ModelConfig, ...]:
    return laws.ladder(vocab_size, config.max_position_embeddings, config.qk_norm)


def _target(config: PlanConfig, flops: float) -> float:
    """Parameters at which the budget gives exactly the tokens per parameter asked for."""
    return laws.optimal_parameters(flops, config.tokens_per_parameter * config.over_training)
