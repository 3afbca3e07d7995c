"""Rows as token sequences that fit: the check for over-long rows comes before the model is loaded.

`room` is what the model and the settings allow; `fit` refuses, drops or cuts what is longer. Not covered: packing
(see `training.batch`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loopline.base.errors import UserError
from loopline.commands.config import TuneConfig
from loopline.training.batch import Example
from loopline.training.finetune import position_limit

Row = dict[str, Any]


def room(model: Path, config: TuneConfig) -> int:
    """Tokens that one row may have."""
    return min(config.sequence_length, position_limit(model) or config.sequence_length)


def fit(
    groups: Sequence[tuple[Example, ...]], names: Sequence[str], limit: int, config: TuneConfig, model_limit: int | None
) -> tuple[list[tuple[Example, ...]], dict[str, int]]:
    """The groups of examples (one of a conversation, two of a pair) that fit `limit` tokens each, and counts.

    Raises `UserError` for longer ones unless `config.overlong` says to drop or truncate them.
    """
    long = [number for number, group in enumerate(groups) if max(len(item.tokens) for item in group) > limit]
    if not long:
        return list(groups), {}
    if config.overlong == "refuse":
        longest = max(long, key=lambda number: max(len(item.tokens) for item in groups[number]))
        tokens = max(len(item.tokens) for item in groups[longest])
        fix = "leave them out with --set overlong=drop, or cut them with --set overlong=truncate"
        if model_limit is None or tokens <= model_limit:
            fix = f"give them room with --set sequence_length={tokens}, {fix}"
        why = "the model takes" if model_limit is not None and limit == model_limit else "sequence_length allows"
        raise UserError(
            f"{len(long)} of {len(groups)} rows are longer than the {limit} tokens that {why}; the longest, "
            f"{names[longest]}, has {tokens}",
            fix,
        )
    kept: list[tuple[Example, ...]] = []
    counts = {"too long": 0, "cut": 0}
    left = set(long)
    for number, group in enumerate(groups):
        if number not in left:
            kept.append(group)
            continue
        cut = tuple(_cut(item, limit) for item in group)
        if config.overlong == "truncate" and all(any(item.weights) for item in cut):
            counts["cut"] += 1
            kept.append(cut)
        else:
            # Cut before its first word of an answer, a row would teach nothing.
            counts["too long"] += 1
    if not kept:
        raise UserError(f"All {len(groups)} rows are longer than {limit} tokens", "raise sequence_length")
    return kept, {why: count for why, count in counts.items() if count}


def _cut(item: Example, limit: int) -> Example:
    extras = {name: values[:limit] for name, values in item.extras.items()}
    return Example(item.tokens[:limit], item.weights[:limit], extras, item.scalars)


def steps_of(config: TuneConfig, rows: int, per_step: int) -> int:
    """Optimizer steps: as set, or so many epochs of the rows."""
    return config.steps or max(1, math.ceil(config.epochs * rows / per_step))
