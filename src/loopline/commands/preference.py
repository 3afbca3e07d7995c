"""Learning from preferences: a reward model, or the policy itself by DPO and its relatives.

    loopline reward --model DIR --data pairs.jsonl --out runs/judge
    loopline dpo --model DIR --data pairs.jsonl --out runs/mine --set loss=simpo

The reference policy of DPO, IPO and KTO is the model one starts from; its log-probs are computed once, before the first
step. KTO's estimate of the KL takes, for every answer, one that was given to another prompt. A process reward model
(`reward --set loss=process`) scores each step of a solution at its last token. Not covered: references other than the
start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from loopline.base.errors import UserError
from loopline.base.files import read_json, read_jsonl, write_json
from loopline.chat.load import load_tokenizer
from loopline.commands.config import PreferenceConfig, RewardModelConfig, TuneConfig
from loopline.commands.lengths import fit, room, steps_of
from loopline.model.checkpoint import load_model, save_checkpoint
from loopline.model.heads import ScoreModel
from loopline.model.language_model import LanguageModel
from loopline.store.artifact import Artifact
from loopline.store.context import Context
from loopline.training.batch import Example, build_batch
from loopline.training.config import TrainConfig
from loopline.training.conversations import completion_example, steps_example
from loopline.training.finetune import position_limit
from loopline.training.loop import train
from loopline.training.objectives import Objective, build_objective
from loopline.training.objectives.preference import gather_answers
from loopline.training.policy import load_policy, save_policy
from loopline.training.sources import ExampleSource, PairSource

Row = dict[str, Any]
Group = tuple[Example, ...]
WITHOUT_REFERENCE = ("orpo", "simpo", "cpo")
"""Losses that compare with no reference policy."""
REFERENCE_ROWS = 8
"""Groups scored at once for the reference."""


def objective_of(config: PreferenceConfig) -> Objective:
    """The objective that the settings name. Raises `UserError` for settings that it does not take."""
    settings: dict[str, Any] = dict(config.settings)
    if config.beta is not None:
        settings["weight" if config.loss == "orpo" else "beta"] = config.beta
    elif config.loss not in ("orpo", "simpo"):
        settings["beta"] = 0.1
    if config.sft_weight:
        settings["sft_weight"] = config.sft_weight
    return build_objective(config.loss, **settings)


def dpo(config: PreferenceConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """Train the policy "model" on the preferences of "data"."""
    start = inputs["model"].path
    objective = objective_of(config)
    rows = read_jsonl(inputs["data"] / "rows.jsonl")
    groups, names = kto_groups(rows, start, config, ctx) if config.loss == "kto" else pair_groups(rows, start, ctx)
    kept, counts = fit(groups, names, room(start, config), config, position_limit(start))
    model = load_policy(start, config.adapter, ctx.device)
    if config.loss not in WITHOUT_REFERENCE:
        kept = with_reference(model, kept, ctx)
    source = PairSource(
        [(first, second) for first, second in kept],
        config.pairs_per_step,
        ctx.seed_for("order"),
        config.pairs_per_batch,
    )
    last, steps = run(model, objective, source, len(kept), config.pairs_per_step, config, ctx, config.loss)
    save_policy(model, start, ctx.out)
    write_json(ctx.out / "training.json", {"rows": len(kept), "steps": steps, "loss": config.loss, **counts})
    shown = {name: last[name] for name in ("loss", "accuracy", "chosen_reward", "rejected_reward") if name in last}
    ctx.metrics.summary(**shown, rows=len(kept), steps=steps)


def reward(config: RewardModelConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """Train a scoring layer and the model below it on pairs, or on labelled answers."""
    start = inputs["model"].path
    rows = read_jsonl(inputs["data"] / "rows.jsonl")
    limit = room(start, config)
    if config.loss == "process":
        groups, names = step_groups(rows, start, config, ctx)
    else:
        groups, names = label_groups(rows, start, ctx) if config.loss == "pointwise" else pair_groups(rows, start, ctx)
    kept, counts = fit(groups, names, limit, config, position_limit(start))
    seed = ctx.seed_for("order")
    if config.loss != "bradley_terry":
        if config.loss == "process":
            objective = build_objective("process_reward")
        else:
            binary = all(0 <= row["label"] <= 1 for row in rows)
            objective = build_objective("pointwise", kind="logistic" if binary else "squared")
        answers = [example for (example,) in kept]
        source: Any = ExampleSource(answers, config.pairs_per_step, limit, config.pairs_per_batch, seed)
    else:
        objective = build_objective("bradley_terry", centering=config.centering)
        source = PairSource([(a, b) for a, b in kept], config.pairs_per_step, seed, config.pairs_per_batch)
    loaded = load_model(start, ctx.device)
    model = loaded if isinstance(loaded, ScoreModel) else ScoreModel(loaded)
    last, steps = run(model, objective, source, len(kept), config.pairs_per_step, config, ctx, "reward model")
    save_checkpoint(model, start, ctx.out)
    write_json(ctx.out / "training.json", {"rows": len(kept), "steps": steps, "loss": config.loss, **counts})
    shown = {name: last[name] for name in ("loss", "accuracy") if name in last}
    ctx.metrics.summary(**shown, rows=len(kept), steps=steps)


def run(
    model: LanguageModel,
    objective: Objective,
    source: Any,
    rows: int,
    per_step: int,
    config: TuneConfig,
    ctx: Context,
    description: str,
) -> tuple[dict[str, float], int]:
    """Train; returns the last step's metrics and the number of steps."""
    steps = steps_of(config, rows, per_step)
    settings = TrainConfig(
        optimizer=config.optimizer, schedule=config.schedule, runtime=config.runtime, divide=config.divide
    )
    return train(model, objective, source, steps, settings, ctx, description), steps


def pair_groups(rows: Sequence[Row], start: Any, ctx: Context) -> tuple[list[Group], list[str]]:
    """(chosen, rejected) of every row, and the rows' names."""
    tokenizer = load_tokenizer(start)
    groups: list[Group] = []
    with ctx.progress("tokenizing", len(rows)) as bar:
        for row in rows:
            groups.append(
                tuple(
                    completion_example(tokenizer, row["prompt"], row[side], row["id"])
                    for side in ("chosen", "rejected")
                )
            )
            bar.advance()
    return groups, [row["id"] for row in rows]


def label_groups(rows: Sequence[Row], start: Any, ctx: Context) -> tuple[list[Group], list[str]]:
    """(answer,) of every row with its label."""
    tokenizer = load_tokenizer(start)
    groups: list[Group] = []
    with ctx.progress("tokenizing", len(rows)) as bar:
        for row in rows:
            example = completion_example(tokenizer, row["prompt"], row["completion"], row["id"])
            groups.append((Example(example.tokens, example.weights, scalars={"label": row["label"]}),))
            bar.advance()
    return groups, [row["id"] for row in rows]


def step_groups(
    rows: Sequence[Row], start: Any, config: RewardModelConfig, ctx: Context
) -> tuple[list[Group], list[str]]:
    """(solution,) of every row, with a label at the end of each step."""
    tokenizer = load_tokenizer(start)
    groups: list[Group] = []
    with ctx.progress("tokenizing", len(rows)) as bar:
        for row in rows:
            solution = steps_example(tokenizer, row["prompt"], row["steps"], row["labels"], config.separator, row["id"])
            groups.append((solution,))
            bar.advance()
    return groups, [row["id"] for row in rows]


def kto_groups(
    rows: Sequence[Row], start: Any, config: PreferenceConfig, ctx: Context
) -> tuple[list[Group], list[str]]:
    """(answer with label 1 or 0, another row's answer to the same prompt with label -1) of every row.

    Raises `UserError` when all labels are alike, or there are no two prompts.
    """
    kinds = {row["label"] > 0 for row in rows}
    if len(kinds) < 2:
        raise UserError(
            f"All {len(rows)} labels are {'above' if True in kinds else 'at most'} 0, so there is nothing to prefer",
            "give rows of both kinds: label true (or above 0) for good answers, false for bad ones",
        )
    asked, names = label_groups(rows, start, ctx)
    tokenizer = load_tokenizer(start)
    limit = room(start, config)
    groups: list[Group] = []
    for number, (row, (answer,)) in enumerate(zip(rows, asked, strict=True)):
        other = next(
            (
                candidate
                for step in range(1, len(rows))
                if (candidate := rows[(number + step) % len(rows)])["prompt"] != row["prompt"]
            ),
            None,
        )
        if other is None:
            raise UserError("All rows have the same prompt, and KTO compares answers across prompts", "use loss=dpo")
        stray = completion_example(tokenizer, row["prompt"], other["completion"], f"{row['id']} and {other['id']}")
        # It only estimates a divergence: cut, it still does.
        cut = Example(stray.tokens[:limit], stray.weights[:limit], scalars={"label": -1.0})
        labelled = Example(answer.tokens, answer.weights, scalars={"label": float(row["label"] > 0)})
        groups.append((labelled, cut))
    return groups, names


@torch.no_grad()
def with_reference(model: LanguageModel, groups: Sequence[Group], ctx: Context) -> list[Group]:
    """The groups, each example with the log-prob of its answer under the start; `ctx.state` keeps them for a resume."""
    saved = ctx.state / "reference.json"
    if not saved.exists():
        model.eval()
        device = next(model.parameters()).device
        sums: list[float] = []
        with ctx.progress("scoring with the reference", len(groups)) as bar:
            for first in range(0, len(groups), REFERENCE_ROWS):
                some = groups[first : first + REFERENCE_ROWS]
                sums += gather_answers(model, build_batch(some).to(device), with_reference=False).logprobs_N.tolist()
                bar.advance(len(some))
        write_json(saved, sums)
    found = iter(read_json(saved))
    return [
        tuple(
            Example(item.tokens, item.weights, item.extras, {**item.scalars, "reference": next(found)})
            for item in group
        )
        for group in groups
    ]
