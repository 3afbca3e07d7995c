"""The planning stages: `plan` (stage 3 of the line) and `remix` (loop B).

`plan` takes `data` and writes plan.json; `remix` takes `data` and `evaluations` and writes mixture.json. Both are
functions of their inputs and config alone, except a budget given in minutes, which is measured here, rounded to FLOPs
and recorded in plan.json. Measured speeds are under log/. Not covered: training (see `pretrain`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from loopline.base.errors import UserError
from loopline.base.files import read_json, write_json
from loopline.evaluation.windows import source_bits, source_windows
from loopline.model.config import ModelConfig
from loopline.plan.config import PlanConfig, RemixConfig
from loopline.plan.measure import matmul_flops, round_flops, training_tokens_per_second
from loopline.plan.mixture import remix as remix_weights
from loopline.plan.recipe import choose, make_plan
from loopline.store.artifact import Artifact
from loopline.store.context import Context

# Share of a minutes budget that is training proper; the rest is checkpoints, evaluation and start-up.
TRAINING_SHARE = 0.85
# Share of a matrix product's speed that small decoders reach, for the first guess only.
FIRST_GUESS = 0.2


def plan(config: PlanConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """Write plan.json. Raises `UserError` for an impossible plan before anything is measured or trained."""
    manifest = read_json(inputs["data"] / "manifest.json")
    sources = manifest["sources"]
    train_tokens = {name: int(entry["train_tokens"]) for name, entry in sources.items()}
    weights = {name: float(entry["weight"]) for name, entry in sources.items()}
    vocab_size = int(manifest["vocab_size"])
    torch.set_num_threads(ctx.threads)
    flops = config.budget.flops or _flops_of_minutes(config, vocab_size, ctx)
    value = make_plan(config, flops, vocab_size, train_tokens, weights)
    write_json(ctx.out / "plan.json", value)
    speed = training_tokens_per_second(
        ModelConfig(**value["model"]), config.sequence_length, value["batch_tokens"], seconds=1.5
    )
    predicted = value["tokens"] / speed / 60
    write_json(ctx.out / "log" / "speed.json", {"tokens_per_second": speed, "predicted_minutes": predicted})
    ctx.metrics.summary(parameters=value["parameters"], tokens=value["tokens"], steps=value["steps"])
    Console(stderr=True).print(table_of(value, predicted))


def remix(config: RemixConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """Write mixture.json: {"before", "after", "reasons", "tokens", "epochs"}."""
    sources = read_json(inputs["data"] / "manifest.json")["sources"]
    total = sum(float(entry["weight"]) for entry in sources.values())
    before = {name: float(entry["weight"]) / total for name, entry in sorted(sources.items())}
    train_tokens = {name: int(entry["train_tokens"]) for name, entry in sources.items()}
    tokens = config.tokens or sum(train_tokens.values())
    bits, scores = measured(config, inputs["evaluations"])
    after, reasons = remix_weights(config, before, train_tokens, bits, scores, tokens)
    epochs = {name: round(tokens * weight / max(1, train_tokens[name]), 3) for name, weight in after.items()}
    write_json(
        ctx.out / "mixture.json",
        {"before": before, "after": after, "reasons": reasons, "tokens": tokens, "epochs": epochs},
    )
    moved = max(before, key=lambda name: abs(after[name] - before[name]))
    ctx.metrics.summary(headline=f"{moved}: {before[moved]:.1%} -> {after[moved]:.1%} of the tokens")
    for sentence in reasons:
        Console(stderr=True).print(sentence, highlight=False)


def table_of(value: Mapping[str, Any], minutes: float) -> Table:
    """The plan as people read it."""
    model = value["model"]
    table = Table(title="System recipe", show_header=False)
    rows = [
        ("model", f"{value['parameters']:,} parameters: {model['num_hidden_layers']} layers of {model['hidden_size']}"),
        ("heads", f"{model['num_attention_heads']} query, {model['num_key_value_heads']} key/value, "
                  f"{model['head_dim']} channels each"),
        ("tokens", f"{value['tokens']:,} ({value['tokens_per_parameter']:g} per parameter, "
                   f"{value['chinchilla_multiple']:g}x the compute optimum, {value['asked_multiple']:g}x asked for"
                   + "".join(f"; {bound}" for bound in value["bounded_by"]) + ")"),
        ("compute", f"{value['flops']:.3g} of {value['budget']['flops']:.3g} FLOPs"),
        ("batch", f"{value['batch_tokens']:,} tokens in sequences of {value['sequence_length']}"),
        ("steps", f"{value['steps']:,}"),
        ("learning rate", f"{value['learning_rate']:g} (matrices under Muon {value['matrix_learning_rate']:g})"),
        ("epochs", ", ".join(f"{name} {count:g}" for name, count in value["epochs"].items())),
        ("memory", f"{value['memory']['training_bytes'] / 1e6:,.0f} MB to train, "
                   f"{value['memory']['serving_bytes'] / 1e6:,.0f} MB to serve"),
        ("student", f"{ModelConfig(**value['student']).parameters():,} parameters"),
        ("predicted time", f"{minutes:.1f} minutes on this machine"),
    ]  # fmt: skip
    for name, text in rows:
        table.add_row(name, text)
    return table


def _flops_of_minutes(config: PlanConfig, vocab_size: int, ctx: Context) -> float:
    """The FLOPs this machine does in the minutes asked for; measured once, kept across a crash."""
    kept = ctx.state / "budget.json"
    if kept.exists():
        return float(read_json(kept)["flops"])
    seconds = TRAINING_SHARE * 60 * float(config.budget.minutes or 0)
    products = matmul_flops()
    guess = choose(config, FIRST_GUESS * products * seconds, vocab_size).model
    flops = 0.0
    tried: list[dict[str, float]] = []
    # A small shape reaches another share of the peak than a large one: measure the shape the budget leads to.
    for _ in range(3):
        speed = training_tokens_per_second(guess, config.sequence_length, config.batch_tokens or 8192)
        flops = round_flops(6 * guess.parameters() * speed * seconds)
        tried.append({"parameters": guess.parameters(), "tokens_per_second": speed, "flops": flops})
        following = choose(config, flops, vocab_size).model
        if following == guess:
            break
        guess = following
    write_json(ctx.out / "log" / "measured.json", {"matmul_flops": products, "tried": tried})
    write_json(kept, {"flops": flops})
    return flops


def measured(config: RemixConfig, evaluations: Artifact) -> tuple[dict[str, float], dict[str, float]]:
    """(bits per byte by source, mean score by task set and `tag:<tag>`) of one checkpoint's development part.

    Scores are those of the sampled mode where it was asked. Raises `UserError` when it is not clear which checkpoint is
    meant.
    """
    path = evaluations / "summary.json"
    rows = [row for row in read_json(path)["evaluations"] if row["value"] is not None]
    names = sorted({str(row["checkpoint"]) for row in rows})
    name = config.checkpoint or (names[0] if len(names) == 1 else None)
    if name is None or name not in names:
        raise UserError(
            f"{path} has evaluations of {', '.join(names) or 'no checkpoint'}, and checkpoint is {config.checkpoint!r}",
            "set checkpoint to one of them",
        )
    scores: dict[str, float] = {}
    for metric in ("greedy pass@1", "sampled pass@1"):
        chosen = [row for row in rows if row["checkpoint"] == name and row["metric"] == metric]
        scores |= {str(row["task"]): float(row["value"]) for row in chosen if row["part"] == "dev"}
    return source_bits(source_windows(evaluations.path, "dev")), scores
