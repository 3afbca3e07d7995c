"""Training a policy on preferences, by DPO and its relatives.

    - preference: {data: pairs.jsonl}
    - {preference: {loss: simpo, beta: 2, gamma: 1}, inputs: {rows: traffic_data}}

The reference policy of DPO, IPO and KTO is the model one starts from; its log-probs are computed once, before the first
step. KTO's estimate of the KL takes, for every answer, one to another prompt. Not covered: references
other than the start, pairs that the policy samples itself (see `align`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from loopline.base.errors import UserError
from loopline.base.files import read_json, write_json
from loopline.chat.load import load_tokenizer
from loopline.evaluation.during import development
from loopline.model.language_model import LanguageModel
from loopline.posttrain.data import checkpoint_of, heldout_of, read_sources
from loopline.posttrain.pairs import kto_items, pair_items
from loopline.posttrain.preference_config import LossConfig, PreferenceConfig
from loopline.store.artifact import Artifact
from loopline.store.context import Context
from loopline.tasks.layouts import Purpose
from loopline.tasks.rows import Labelled, Pair
from loopline.training.batch import Example, build_batch
from loopline.training.lengths import Item, fit, position_limit
from loopline.training.loop import train
from loopline.training.objectives import CPO, DPO, KTO, ORPO, Objective, SimPO
from loopline.training.objectives.preference import gather_answers
from loopline.training.policy import load_policy, save_policy
from loopline.training.sources import PairSource

SINGLE = ("kto", "apo_zero_unpaired")
"""Losses of single answers with a label."""
WITHOUT_REFERENCE = ("orpo", "simpo", "cpo")
"""Losses that compare with no reference policy."""
REFERENCE_ROWS = 8
"""Groups scored at once for the reference."""
SHOWN = ("loss", "accuracy", "chosen_reward", "rejected_reward")
"""Metrics of the last step that the stage reports."""


def objective_of(config: LossConfig) -> Objective:
    """The objective that the settings name."""
    if config.loss == "kto" or config.loss == "apo_zero_unpaired":
        return KTO(config.beta or 0.1, config.desirable_weight, config.undesirable_weight, config.loss)
    if config.loss == "orpo":
        return ORPO(config.beta or 0.1)
    if config.loss == "simpo":
        return SimPO(config.beta or 2.0, config.gamma)
    if config.loss == "cpo":
        return CPO(config.beta or 0.1, 1.0 if config.sft_weight is None else config.sft_weight)
    kind = "sigmoid" if config.loss == "dpo" else config.loss.removeprefix("dpo_")
    return DPO(config.beta or 0.1, config.sft_weight or 0.0, kind, config.label_smoothing)


def preference(config: PreferenceConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """Train "policy" on the preferences of the file "data" and of the artifacts "rows"."""
    start = checkpoint_of(inputs["policy"]).path
    single = config.loss in SINGLE
    purpose: Purpose = "labels" if single else "pairs"
    sources, facts = read_sources(inputs, purpose, config.read, heldout_of(inputs), ctx)
    rows = together(sources, "preferences")
    tokenizer = load_tokenizer(start)
    with ctx.progress("tokenizing", len(rows)) as bar:
        if single:
            limit = config.longest(position_limit(start))
            items = kto_items(cast("list[Labelled]", rows), tokenizer, limit, bar.advance)
        else:
            items = pair_items(cast("list[Pair]", rows), tokenizer, bar.advance)
    learn(items, start, config, inputs, ctx, {"read": facts})


def together(sources: Mapping[str, Sequence[dict[str, Any]]], what: str) -> list[dict[str, Any]]:
    """The rows of all sources, named by it where there are several. Raises `UserError` when there are none."""
    if not sources:
        raise UserError(f"There are no {what} to train on", "set `data`, or give an input `rows`")
    if len(sources) == 1:
        return list(next(iter(sources.values())))
    return [{**row, "id": f"{source}/{row['id']}"} for source, rows in sources.items() for row in rows]


def learn(
    items: Sequence[Item],
    start: Path,
    config: LossConfig,
    inputs: Mapping[str, Artifact],
    ctx: Context,
    facts: Mapping[str, Any],
) -> None:
    """Train the checkpoint in `start` on pairs (or on KTO's groups), and write it to `ctx.out` beside training.json."""
    kept, left_out = fit(items, config, position_limit(start))
    model = load_policy(start, config.adapter, ctx.device)
    groups = [item.examples for item in kept]
    if config.loss not in WITHOUT_REFERENCE:
        groups = with_reference(model, groups, ctx)
    source = PairSource(
        [(first, second) for first, second in groups], config.batch_size, ctx.seed_for("order"), config.rows_per_batch
    )
    steps = config.steps_for(len(kept))
    with development(config.evaluate, model, start, inputs, ctx) as evaluations:
        last = train(model, objective_of(config), source, steps, config, ctx, config.loss, evaluations=evaluations)
    save_policy(model, start, ctx.out)
    write_json(ctx.out / "training.json", {"rows": len(kept), "steps": steps, "left_out": left_out, **facts})
    ctx.metrics.summary(**{name: last[name] for name in SHOWN if name in last}, rows=len(kept), steps=steps)


@torch.no_grad()
def with_reference(
    model: LanguageModel, groups: Sequence[tuple[Example, ...]], ctx: Context
) -> list[tuple[Example, ...]]:
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
