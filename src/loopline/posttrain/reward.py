"""Training a reward model: from pairs, from labelled answers, or from solutions with a label per step.

    - reward: {data: pairs.jsonl}
    - reward: {data: steps.jsonl, loss: process}

The score of a conversation is that of its last token, as in `transformers`' sequence classification; a process reward
model scores each step of a solution at its last token. Not covered: generative judges (see `grading`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from loopline.base.files import write_json
from loopline.chat.load import load_tokenizer
from loopline.model.checkpoint import load_model, save_checkpoint
from loopline.model.heads import ScoreModel
from loopline.posttrain.data import checkpoint_of, heldout_of, read_sources
from loopline.posttrain.pairs import label_items, pair_items, solution_items
from loopline.posttrain.preference import together
from loopline.posttrain.preference_config import RewardModelConfig
from loopline.store.artifact import Artifact
from loopline.store.context import Context
from loopline.tasks.layouts import Purpose
from loopline.tasks.rows import Labelled, Pair, Solution
from loopline.training.lengths import fit, position_limit
from loopline.training.loop import BatchSource, train
from loopline.training.objectives import BradleyTerry, Objective, Pointwise, ProcessReward
from loopline.training.sources import ExampleSource, PairSource

PURPOSES: dict[str, Purpose] = {"bradley_terry": "pairs", "pointwise": "labels", "process": "steps"}


def reward(config: RewardModelConfig, inputs: Mapping[str, Artifact], ctx: Context) -> None:
    """Train a scoring layer on "policy" from the file "data" and the artifacts "rows"."""
    start = checkpoint_of(inputs["policy"]).path
    purpose = PURPOSES[config.loss]
    sources, facts = read_sources(inputs, purpose, config.read, heldout_of(inputs), ctx)
    rows = together(sources, "preferences")
    tokenizer, limit = load_tokenizer(start), position_limit(start)
    with ctx.progress("tokenizing", len(rows)) as bar:
        if config.loss == "bradley_terry":
            items = pair_items(cast("list[Pair]", rows), tokenizer, bar.advance)
        elif config.loss == "pointwise":
            items = label_items(cast("list[Labelled]", rows), tokenizer, bar.advance)
        else:
            items = solution_items(cast("list[Solution]", rows), tokenizer, config.separator, bar.advance)
    kept, left_out = fit(items, config, limit)
    groups, seed = [item.examples for item in kept], ctx.seed_for("order")
    source: BatchSource
    if config.loss == "bradley_terry":
        pairs = [(first, second) for first, second in groups]
        source = PairSource(pairs, config.batch_size, seed, config.rows_per_batch)
    else:
        answers = [example for (example,) in groups]
        source = ExampleSource(answers, config.batch_size, config.longest(limit), config.rows_per_batch, seed)
    loaded = load_model(start, ctx.device)
    model = loaded if isinstance(loaded, ScoreModel) else ScoreModel(loaded)
    steps = config.steps_for(len(kept))
    last = train(model, objective_of(config, rows), source, steps, config, ctx, "reward model")
    save_checkpoint(model, start, ctx.out)
    write_json(ctx.out / "training.json", {"rows": len(kept), "steps": steps, "left_out": left_out, "read": facts})
    ctx.metrics.summary(
        **{name: last[name] for name in ("loss", "accuracy") if name in last}, rows=len(kept), steps=steps
    )


def objective_of(config: RewardModelConfig, rows: Sequence[Mapping[str, Any]]) -> Objective:
    """The objective that the settings name; labels outside 0 to 1 are predicted as numbers."""
    if config.loss == "bradley_terry":
        return BradleyTerry(config.centering)
    if config.loss == "process":
        return ProcessReward()
    binary = all(0 <= row["label"] <= 1 for row in rows)
    return Pointwise("logistic" if binary else "squared")
